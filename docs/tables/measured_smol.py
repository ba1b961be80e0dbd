"""What the small model with a language model inside does, and which premises of the methods hold in it, from JSON."""

import json
from typing import Any

from measured_table import EVALUATIONS, ROOT, interval_text
from run_command import run_command

TRAINED = ROOT / "vlm_guard" / "smol_model" / "trained"


def behaviour_markdown() -> str:
    """One row for each thing the model should do: what was measured, what was wanted, whether it is met."""
    report = json.loads((TRAINED / "behaviour.json").read_text(encoding="utf-8"))
    lines = ["| in percent | measured | wanted | |", "|---|---|---|---|"]
    for row in report["targets"]:
        lines.append(f"| {row['target']} | {row['value']:.1f} | {_wanted(row)} | {'met' if row['met'] else 'missed'} |")
    seeds = " and ".join(map(str, report["seeds"]))
    source = (TRAINED / "behaviour.json").relative_to(ROOT)
    return "\n".join(
        [
            *lines,
            "",
            f"{report['scenes_per_split_and_seed']} scenes of each split for each of the seeds {seeds}, "
            f"{report['decoding']} ({source}; {report['machine']['processor']}, torch "
            f"{report['machine']['versions']['torch']}).",
            "",
            *_on_more_scenes(report["seeds"]),
            "",
        ]
    )


_SHOWN = {
    "recall": "recall",
    "chair_i": "CHAIR_i",
    "repetition": "repeats",
    "pope.random.f1": "F1, random",
    "pope.popular.f1": "F1, popular",
    "pope.adversarial.f1": "F1, adversarial",
    "pope.mean.unparsed": "unparsed answers",
}


def _on_more_scenes(seeds: list[int]) -> list[str]:
    """The plain model on the scenes of `eval/results/plain_smol_SPLIT_SEED.json`, with intervals."""
    lines = [f"| in percent | {' | '.join(_SHOWN.values())} |", "|---" * (1 + len(_SHOWN)) + "|"]
    command = ""
    for split in ("common", "broken"):
        for seed in seeds:
            results = json.loads((EVALUATIONS / f"plain_smol_{split}_{seed}.json").read_text(encoding="utf-8"))
            found = results["methods"][0]["estimates"]
            cells = [interval_text(found[name]) for name in _SHOWN]
            lines.append(f"| {results['data']['images']} of `{results['data']['name']}` | {' | '.join(cells)} |")
            command = command or run_command(results)
    hardware = results["environment"]["hardware"]["processor"]
    return [*lines, "", f"`{command}` and so on (eval/results/plain_smol_*.json; {hardware})."]


def _wanted(row: dict[str, Any]) -> str:
    low, high = row["low"], row["high"]
    if low > 0 and high < 100:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low > 0 else f"at most {high:g}"


def premises_markdown() -> str:
    """Each of the five methods that the project is named for: what it presumes, and what was measured of it."""
    found = json.loads((TRAINED / "premises.json").read_text(encoding="utf-8"))
    model = found["smol"]
    rows = [
        ("VAR", "visual tokens among the attention sinks", _sinks(model["sinks"])),
        ("VHR", "heads whose output depends on the picture", _heads(model["attention"])),
        ("PAINT", "a class token that looks at objects", _class_token(model["class token"])),
        ("CARVE", "small things are seen better magnified", _magnified(model["small objects"])),
    ]
    lines = ["| method | presumes | measured |", "|---|---|---|"]
    lines += [f"| {name} | {presumed} | {measured} |" for name, presumed, measured in rows]
    source = (TRAINED / "premises.json").relative_to(ROOT)
    machine = found["machine"]
    last = (
        f"Scenes of the seed {found['seed']} ({source}; {machine['processor']}, torch {machine['versions']['torch']})."
    )
    return "\n".join([*lines, "", last, ""])


def _sinks(facts: dict[str, Any]) -> str:
    layers = facts["layers"]
    having = [name for name, layer in layers.items() if layer["sinks a prompt"] > 0]
    visual = sum(layer["visual sinks a prompt"] for layer in layers.values())
    most = max(layer["most drawn by one token"] for layer in layers.values())
    return (
        f"sinks in {len(having)} of {len(layers)} layers, the strongest drawing {100 * most:.0f} % of a layer's "
        f"attention; visual sinks a prompt, all layers together: {visual:.1f}"
    )


def _heads(facts: dict[str, Any]) -> str:
    spread = facts["image_dependence_spread"]
    return (
        f"without the picture a head's output changes by {100 * spread['median']:.0f} % of its length in the median, "
        f"by {100 * spread['least']:.0f} % to {100 * spread['most']:.0f} % in the least and the most dependent head"
    )


def _class_token(facts: dict[str, Any]) -> str:
    ratios = ", ".join(f"{layer['ratio']:.2f}" for layer in facts["layers"].values())
    return f"attention on a patch that shows an object, in times of one that does not, by tower layer: {ratios}"


def _magnified(facts: dict[str, Any]) -> str:
    return (
        f"of small objects {facts['yes, present, full view']:.0f} % are seen at full view and "
        f"{facts['yes, present, magnified part']:.0f} % magnified {facts['magnified']:g} times; yes to absent ones: "
        f"{facts['yes, absent, full view']:.0f} % and {facts['yes, absent, magnified part']:.0f} %"
    )
