"""The measured numbers of grounding scores and of repair, read from committed result files and from nothing else."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from measured_table import EVALUATIONS, ROOT, TIMINGS, interval_text, ratio_text
from run_command import run_command

_SCORES = (
    ("auroc", "AUROC"),
    ("auroc_in_fifths", "AUROC in fifths"),
    ("aupr", "AUPR"),
    ("aurc", "risk area"),
)
_NAMES = {"score": "score", "lens": "lens", "self_check": "self-check", "position": "by place alone"}


def grounding_markdown() -> str:
    """How well scores tell true mentions from false ones, what repair does, and what both parts cost."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(EVALUATIONS.glob("grounding_*.json"))]
    paths = [path.relative_to(ROOT) for path in sorted(EVALUATIONS.glob("grounding_*.json"))]
    lines = [*_score_lines(files), *_repair_lines(files), *_sources(files, paths), *_layer_lines(), *_cost_lines()]
    return "\n".join(lines) + "\n"


def _score_lines(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row for every scene split and part: the plain model's mentions."""
    lines = [
        "Mentions of the plain model's captions, in percent with 95 % bootstrap intervals over pictures.",
        "",
        f"| scenes | mentions, wrong | part | {' | '.join(label for _, label in _SCORES)} | ECE |",
        "|---" * (4 + len(_SCORES)) + "|",
    ]
    for results in files:
        plain = results["methods"][0]
        if _repair_of(results) != "drop":
            continue  # The same captions and scores once more, repaired in another way.
        summary, estimates = plain["grounding"], plain["estimates"]
        name = f"{_place(results)}, {results['data']['images']}"
        for part, label in _NAMES.items():
            cells = [_interval(estimates.get(f"grounding.{measure}.{part}")) for measure, _ in _SCORES]
            error = _interval(estimates["grounding.ece"]) if part == "score" else ""
            counts = f"{summary['mentions']}, {summary['hallucinated_mentions']}"
            lines.append(f"| {name} | {counts} | {label} | {' | '.join(cells)} | {error} |")
    return [*lines, ""]


def _repair_lines(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row for every scene split and method: CHAIR, recall and length before and after the repair."""
    lines = [
        "Repair: before, after, and the paired change with its interval. CHAIR_i after it is also given in times of",
        "the plain model's without any. Faults are double spaces, dangling words, sentences without an end and the",
        "like that were not there before. Lost are objects of the picture that the caption named and the repaired one",
        "does not: those whose own score is low, and those that went with a sentence in which something else failed.",
        "",
        "| scenes | method | repair | CHAIR_i | after | times the plain | recall | change | lost: low, others | words "
        "| change | faults |",
        "|---" * 12 + "|",
    ]
    for results in files:
        plain = results["methods"][0]["estimates"]["grounding.repair.before.chair_i"]["value"]
        for method in results["methods"]:
            found = {name.removeprefix("grounding.repair."): value for name, value in method["estimates"].items()}
            before, after = found["before.chair_i"]["value"], found["after.chair_i"]["value"]
            change = found["change.recall"]
            words = found["change.words"]
            lost = method["grounding"]["lost_objects"]
            cells = [
                _place(results),
                f"`{method['label']}`",
                f"`{_repair_of(results)}`",
                f"{100 * before:.1f}",
                f"{_interval(found['after.chair_i'])}",
                f"{after / plain:.2f}" if plain else "",
                f"{100 * found['before.recall']['value']:.1f}",
                f"{100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]",
                f"{lost['by_own_score']}, {lost['with_others']}",
                f"{found['before.words']['value']:.1f}",
                f"{words['value']:+.1f}",
                f"{sum(method['grounding']['faults'].values())}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _sources(files: Sequence[Mapping[str, Any]], paths: Sequence[Any]) -> list[str]:
    lines = []
    for results, path in zip(files, paths, strict=True):
        lines.append(f"`{run_command(results)}` ({path}; {results['environment']['hardware']['processor']})")
        lines.append("")
    known = [results["environment"]["versions"] for results in files]
    versions = {f"torch {each['torch']}, transformers {each['transformers']}" for each in known}
    lines.append(f"{'; '.join(sorted(versions))}. The weights of the score are the profile's:")
    notes = {results["model"]["name"]: results["profile"]["facts"]["grounding_score"]["note"] for results in files}
    lines += [f"of `{model}` {note}." for model, note in notes.items()]
    return [*lines, ""]


def _layer_lines() -> list[str]:
    """How well the lens does with one set of layers and another, from `eval/results/lens_layers.json`."""
    measured = json.loads((EVALUATIONS / "lens_layers.json").read_text(encoding="utf-8"))
    runs = measured["runs"]
    places = list(dict.fromkeys((run["model"], run["data"]) for run in runs))
    lines = [
        "The layers that the lens reads: AUROC of the lens alone, in percent, on scenes to which weights are fitted.",
        "",
        f"| layers | {' | '.join(f'`{model}`, `{data}`' for model, data in places)} |",
        "|---" * (1 + len(places)) + "|",
    ]
    for model, layers in dict.fromkeys((run["model"], tuple(run["lens_layers"])) for run in runs):
        same = [run for run in runs if (run["model"], tuple(run["lens_layers"])) == (model, layers)]
        found = {(model, run["data"]): run["auroc"] for run in same}
        lines.append(
            f"| {', '.join(map(str, layers))} | {' | '.join(_interval(found.get(place)) for place in places)} |"
        )
    commands = "; ".join(f"`{command}`" for command in measured["commands"])
    source = f"{commands} (eval/results/lens_layers.json; {measured['hardware']['processor']})"
    return [*lines, "", source, ""]


def _place(results: Mapping[str, Any]) -> str:
    """The scenes of a run, and the model where it is another than the built-in one."""
    model = results["model"]["name"]
    return f"`{results['data']['name']}`" if model == "builtin" else f"`{model}`, `{results['data']['name']}`"


def _repair_of(results: Mapping[str, Any]) -> str:
    """How the run repaired its captions."""
    return str(results["tasks"]["grounding"]["repair"])


def _cost_lines() -> list[str]:
    """What the parts cost, from `kernels/results/grounding_cost_*.json`."""
    lines = [
        "What the parts cost, in times of the plain model's: the median of calls beside plain ones, and where 60 % of",
        "them lie. The lens keeps states while the prompt is read, and reads them when the answer mentions something:",
        "the first token comes after the keeping, the column after it counts the reading to the prompt as well. The",
        "self-check is of five things a picture, in times of the whole answer.",
        "",
        "| model | batch | dtype | first token, lens | prompt, lens read | token, lens | self-check | processor |",
        "|---" * 8 + "|",
    ]
    sources = []
    for path in sorted(TIMINGS.glob("grounding_cost_*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        names = ("lens_first_token", "lens_prefill", "lens_token", "self_check")
        cells = [ratio_text(measured["ratios"][name]) if name in measured["ratios"] else "" for name in names]
        cells = [f"`{measured['model']}`", str(measured["batch"]), measured["dtype"], *cells]
        lines.append(f"| {' | '.join([*cells, measured['machine']['processor']])} |")
        sources.append(
            f"`{measured['command']}` ({path.relative_to(ROOT)}): {measured['machine']['processor']}, "
            f"{measured['machine']['torch_threads']} threads, {measured['visual_tokens']} visual tokens, "
            f"{measured['new_tokens']} new tokens, {measured['rounds']} rounds."
        )
    return [*lines, "", *sources]


def _interval(estimate: Mapping[str, float] | None) -> str:
    return "" if estimate is None else interval_text(estimate)
