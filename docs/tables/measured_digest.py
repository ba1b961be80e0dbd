"""What the methods do and cost, in a table for docs/results.md and a smaller one for the README, from results."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measured_table import EVALUATIONS, TIMINGS, emphasised, names_nothing
from vlm_guard.bench.paired_timing import comes_at_once


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The committed results of one model.

    Attributes:
        kinds: what the names of files begin with: first of those with every method at its defaults, then of those with
            settings that were chosen on other scenes.
        splits: of scenes, in the order in which they are shown.
    """

    kinds: tuple[str, ...]
    splits: tuple[str, ...]


BUILTIN = Measured(kinds=("builtin", "tuned"), splits=("common", "broken"))
SMOL = Measured(kinds=("smol", "smol_tuned"), splits=("common", "broken", "small"))
TIMED_MODEL = "llava-0.3b"
TIMED_BATCHES = (1, 4)
TIMED_DTYPE = "float32"
TIMED_ON = {"float32": "Intel(R) Xeon(R) Processor", "bfloat16": "AMD EPYC"}
"""By type, the processor whose runs are shown: ratios of different processors do not belong into one column."""


def digest_markdown() -> str:
    """One row per method and setting: differences to the plain model on both splits, in words and in numbers, and cost.

    Settings other than the defaults were chosen on other scenes.
    """
    costs = {batch: measured_costs(batch) for batch in TIMED_BATCHES}
    times = [f"prefill, token (batch {batch})" for batch in TIMED_BATCHES]

    def cost(label: str) -> list[str]:
        return ["" if ":" in label else costs[batch].get(label, "") for batch in TIMED_BATCHES]

    return _digest(BUILTIN, times, cost)


def digest_smol_markdown() -> str:
    """The same of the model with a real language model inside; cost as measured while it answered."""
    found = run_costs(SMOL, SMOL.splits[0])
    return _digest(SMOL, ["tokens/s", "memory"], lambda label: list(found[label]))


def _digest(measured: Measured, last: Sequence[str], cells_of: Callable[[str], list[str]]) -> str:
    sides = [f"`{split}` CHAIR_i | recall | POPE F1 | in words" for split in measured.splits]
    lines = [f"| {' | '.join(['method', *sides, *last])} |", "|---" * (1 + 4 * len(sides) + len(last)) + "|"]
    for label, found in _labels(measured):
        cells = [f"`{label}`"]
        for difference in found:
            cells += [_change(difference.get(name)) for name in ("chair_i", "recall", "pope.mean.f1")]
            cells.append(_in_words(difference))
        lines.append(f"| {' | '.join([*cells, *cells_of(label)])} |")
    return "\n".join(lines) + "\n"


def _labels(measured: Measured) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every method and setting of the first split with its differences by split, empty where it was not measured.

    A default that stands beside chosen settings comes once.
    """
    for kind in measured.kinds:
        found = [differences(kind, split) for split in measured.splits]
        if kind == measured.kinds[0] and not all(found):
            raise FileNotFoundError(
                f"an evaluation {kind}_SPLIT.json is missing for one of {', '.join(measured.splits)}"
            )
        for label in found[0]:
            if kind == measured.kinds[0] or ":" in label:
                yield label, [entries.get(label, {}) for entries in found]


# The best that can be said comes first.
_SILENT = "names hardly anything"
_VERDICTS = ("helps", "finds more", "costs recall", "no clear change", "names more, right and wrong", "worse", _SILENT)
_SCORED = ("", "smol_")
"""Models with runs of the task "grounding", in the names of their files."""
_NOTHING, _NOT_RUN = "no clear change", "not measured"


def helps_markdown() -> str:
    """The README's table: what is not plainly worse on the model with a language model inside; the rest by name."""
    costs = run_costs(SMOL, SMOL.splits[0])
    found: list[tuple[list[int], str]] = []
    unchanged, worse, silent = [], [], []
    for label, entries in _labels(SMOL):
        if ":" in label:
            continue
        words = [_in_words(difference) for difference in entries]
        if {*words} <= {_NOTHING, _NOT_RUN}:
            unchanged.append(f"`{label}`")
            continue
        if {*words} <= {"worse", _SILENT, _NOT_RUN}:
            (silent if _SILENT in words else worse).append(f"`{label}`")
            continue
        changes = [_change(entries[0].get(name)) for name in ("chair_i", "recall", "pope.mean.f1")]
        place = [(*_VERDICTS, _NOT_RUN).index(word) for word in words]
        found.append((place, f"| `{label}` | {' | '.join([*words, *changes, costs[label][0]])} |"))
    sides = " | ".join(f"on `{split}`" for split in SMOL.splits)
    rows = [row for _, row in sorted(found, key=lambda item: item[0])]
    head = [f"| method | {sides} | CHAIR_i | recall | POPE F1 | tokens/s |", "|---" * (5 + len(SMOL.splits)) + "|"]
    named = {
        "No clear change on any of them": unchanged,
        "Worse on all": worse,
        "Captions that name hardly anything": silent,
    }
    last = " ".join(f"{words}: {', '.join(labels)}." for words, labels in named.items() if labels)
    return "\n".join([*head, *rows, "", f"{last} {_scenes(SMOL)}", "", _elsewhere()]) + "\n"


def _elsewhere() -> str:
    """What helps on both splits of the built-in model, and what taking doubtful mentions out does to plain captions."""
    helping = [f"`{label}`" for label, found in _labels(BUILTIN) if {*map(_in_words, found)} == {"helps"}]
    said = f"On the 5 M model these settings help on `common` and `broken`: {', '.join(helping)}."
    moved = [", ".join(_repaired(f"grounding_{model}{split}", split) for split in BUILTIN.splits) for model in _SCORED]
    said += " Taking out of plain captions what a [score](docs/grounding.md) doubts moves CHAIR_i"
    return f"{said} {moved[0]}; on `smol` {moved[1]}."


def _repaired(name: str, split: str) -> str:
    """What the repair of plain captions moved in a run of the task "grounding"."""
    found = _results(name)["methods"][0]["estimates"]
    parts = ("before.chair_i", "after.chair_i", "change.recall")
    before, after, recall = (100 * found[f"grounding.repair.{part}"]["value"] for part in parts)
    return f"from {before:.1f} to {after:.1f} on `{split}` (recall {recall:+.1f})"


def _scenes(measured: Measured) -> str:
    """How many scenes of each split the numbers are from, and what was measured on others."""
    kind = measured.kinds[0]
    told = [", ".join(f"{scenes(kind, split)} of `{split}`" for split in measured.splits)]
    for part, name in (("pope", "POPE"), ("opera", "`opera`")):
        apart = [split for split in measured.splits if _is_measured(f"{kind}_{part}_{split}")]
        told += [f"{name} {scenes(f'{kind}_{part}', split)} of `{split}`" for split in apart]
    return f"Scenes: {'; '.join(told)}."


def run_costs(measured: Measured, split: str) -> dict[str, tuple[str, str]]:
    """By label, tokens per second as a ratio to the plain model's and peak memory.

    They are those of a run on few scenes of `split` and nothing else on the machine, where there is one, else those of
    the runs on `split` that the scores are from.
    """
    found = {}
    alone = f"speed_{measured.kinds[0]}_{split}"
    timed = [_results(alone)] if _is_measured(alone) else []
    for results in (*timed, *(results for kind in measured.kinds for results in _runs(kind, split))):
        plain = results["methods"][0]["cost"]["tokens_per_second"]
        for entry in results["methods"][1:]:
            cost = entry["cost"]
            memory = f"{cost['peak_memory_bytes'] / 2**30:.1f} GiB"
            # The cost is that of captions, where a run of them has the method.
            found.setdefault(entry["label"], (f"{cost['tokens_per_second'] / plain:.2f}x", memory))
    return found


def _in_words(difference: Mapping[str, Any]) -> str:
    """What a method does, from its differences; they are empty where it was not measured."""
    if difference and "chair_i" not in difference:
        return _SILENT
    return verdict(difference["chair_i"], difference["recall"]) if difference else _NOT_RUN


def verdict(chair_i: Mapping[str, float], recall: Mapping[str, float]) -> str:
    """What the intervals of the two differences say; see the README for the words.

    Args:
        chair_i: "low" and "high" of the difference of CHAIR_i to the plain model; lower is better.
        recall: the same of recall; higher is better.
    """
    if chair_i["high"] < 0:
        return "costs recall" if recall["high"] < 0 else "helps"
    if chair_i["low"] > 0:
        return "names more, right and wrong" if recall["low"] > 0 else "worse"
    if recall["high"] < 0:
        return "worse"
    return "finds more" if recall["low"] > 0 else "no clear change"


def differences(kind: str, split: str) -> dict[str, dict[str, Any]]:
    """By label, the differences to the plain model of every estimate; nothing for the plain model itself.

    POPE, and OPERA for its time, may have been measured in runs of their own on fewer scenes (`KIND_pope_SPLIT.json`,
    `KIND_opera_SPLIT.json`); their numbers are added.
    """
    found: dict[str, dict[str, Any]] = {}
    for results in _runs(kind, split):
        baseline = results["methods"][0]["label"]
        for entry in results["methods"]:
            if entry["label"] != baseline:
                changes = dict(entry["difference_to_baseline"])
                if names_nothing(entry):
                    del changes["chair_i"]
                found.setdefault(entry["label"], {}).update(changes)
    return found


def _runs(kind: str, split: str) -> Iterator[dict[str, Any]]:
    """The main run and those of its own, as far as there are."""
    for part in ("", "newer_", "opera_", "pope_"):
        name = f"{kind}_{part}{split}"
        if _is_measured(name):
            yield _results(name)


def _is_measured(name: str) -> bool:
    return (EVALUATIONS / f"{name}.json").is_file()


def _results(name: str) -> dict[str, Any]:
    """The content of a result file."""
    results: dict[str, Any] = json.loads((EVALUATIONS / f"{name}.json").read_text(encoding="utf-8"))
    return results


def scenes(kind: str, split: str) -> int:
    """How many pictures an evaluation has."""
    return int(_results(f"{kind}_{split}")["data"]["images"])


def _change(difference: Mapping[str, float] | None) -> str:
    if difference is None:
        return ""
    return emphasised(f"{100 * difference['value']:+.1f}", difference["low"], difference["high"])


def measured_costs(batch: int = TIMED_BATCHES[0], dtype: str = TIMED_DTYPE) -> dict[str, str]:
    """By method, the median ratios of prefill and of a later token to the unguarded model, of its longest run.

    A method whose answers come in one piece has the ratio of the whole answer instead.
    """
    longest: dict[str, dict[str, Any]] = {}
    for path in sorted(TIMINGS.glob(f"generate_{TIMED_MODEL}_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["machine"]
        if (machine["device"], machine["processor"], result["batch"]) != ("cpu", TIMED_ON[dtype], batch):
            continue
        if result.get("packed_weights") or result.get("compiled") or result["cache"] != "dynamic":
            continue
        for entry in result["entries"]:
            if "ratio_to_unguarded" not in entry["decode"] or entry.get("control"):
                continue
            if entry.get("dtype", result["dtype"]) != dtype:
                continue
            known = longest.setdefault(entry["method"], entry)
            if entry["decode"]["calls"] > known["decode"]["calls"]:
                longest[entry["method"]] = entry
    return {method: _cost(entry) for method, entry in longest.items()}


def _cost(entry: dict[str, Any]) -> str:
    if comes_at_once(entry):
        return f"whole answer {entry['answer']['ratio_to_unguarded']['median']:.2f}x"
    return ", ".join(f"{entry[phase]['ratio_to_unguarded']['median']:.2f}x" for phase in ("prefill", "decode"))
