"""What the methods do and cost, in a table for docs/results.md and a smaller one for the README, from results."""

import json
from collections.abc import Mapping
from typing import Any

from measured_table import EVALUATIONS, TIMINGS, emphasised

SPLITS = ("common", "broken")
TIMED_MODEL = "llava-0.3b"
TIMED_BATCHES = (1, 4)
TIMED_DTYPE = "float32"


def digest_markdown() -> str:
    """One row per method and setting: differences to the plain model on both splits, in words and in numbers, and cost.

    Settings other than the defaults were chosen on other scenes.
    """
    costs = {batch: measured_costs(batch) for batch in TIMED_BATCHES}
    sides = " | ".join(f"`{split}` CHAIR_i | recall | POPE F1 | in words" for split in SPLITS)
    times = " | ".join(f"prefill, token (batch {batch})" for batch in TIMED_BATCHES)
    rows = [f"| method | {sides} | {times} |", "|---" * (1 + 4 * len(SPLITS) + len(TIMED_BATCHES)) + "|"]
    for kind in ("builtin", "tuned"):
        entries = {split: differences(kind, split) for split in SPLITS}
        for label in entries[SPLITS[0]]:
            if kind == "tuned" and ":" not in label:
                continue
            cells = [f"`{label}`"]
            for split in SPLITS:
                difference = entries[split][label]
                cells += [_change(difference.get(name)) for name in ("chair_i", "recall", "pope.mean.f1")]
                cells.append(verdict(difference["chair_i"], difference["recall"]))
            method = label.partition(":")[0]
            cells += ["" if ":" in label else costs[batch].get(method, "") for batch in TIMED_BATCHES]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


# The best that can be said comes first.
_VERDICTS = ("helps", "finds more", "costs recall", "no clear change", "names more, right and wrong", "worse")


def helps_markdown() -> str:
    """The README's table: every setting that was measured, what it changes on the first split, and what it costs."""
    costs = measured_costs()
    found = []
    for kind in ("builtin", "tuned"):
        first, second = (differences(kind, split) for split in SPLITS)
        for label, difference in first.items():
            if kind == "tuned" and ":" not in label:
                continue
            words = [verdict(item[label]["chair_i"], item[label]["recall"]) for item in (first, second)]
            changes = [_change(difference[name]) for name in ("chair_i", "recall", "pope.mean.f1")]
            cost = "" if ":" in label else costs.get(label, "")
            place = [_VERDICTS.index(word) for word in words]
            found.append((place, f"| `{label}` | {' | '.join([*words, *changes, cost])} |"))
    head = f"| method | on `{SPLITS[0]}` | on `{SPLITS[1]}` | CHAIR_i | recall | POPE F1 | prompt, token |"
    rows = [row for _, row in sorted(found, key=lambda item: item[0])]
    return "\n".join([head, "|---" * 7 + "|", *rows]) + "\n"


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
    """By label, the differences to the plain model of every estimate; nothing for the plain model itself."""
    path = EVALUATIONS / f"{kind}_{split}.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    baseline = results["methods"][0]["label"]
    return {
        entry["label"]: entry["difference_to_baseline"] for entry in results["methods"] if entry["label"] != baseline
    }


def scenes(kind: str, split: str) -> int:
    """How many pictures an evaluation has."""
    results = json.loads((EVALUATIONS / f"{kind}_{split}.json").read_text(encoding="utf-8"))
    return int(results["data"]["images"])


def _change(difference: Mapping[str, float] | None) -> str:
    if difference is None:
        return ""
    return emphasised(f"{100 * difference['value']:+.1f}", difference["low"], difference["high"])


def measured_costs(batch: int = TIMED_BATCHES[0], dtype: str = TIMED_DTYPE) -> dict[str, str]:
    """By method, the median ratios of prefill and of a later token to the unguarded model, of its longest run."""
    longest: dict[str, dict[str, Any]] = {}
    for path in sorted(TIMINGS.glob(f"generate_{TIMED_MODEL}_*_batch{batch}_cpu.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for entry in result["entries"]:
            if "ratio_to_unguarded" not in entry["decode"] or entry.get("control"):
                continue
            if entry.get("dtype", result["dtype"]) != dtype:
                continue
            known = longest.setdefault(entry["method"], entry)
            if entry["decode"]["calls"] > known["decode"]["calls"]:
                longest[entry["method"]] = entry
    return {
        method: ", ".join(f"{entry[phase]['ratio_to_unguarded']['median']:.2f}x" for phase in ("prefill", "decode"))
        for method, entry in longest.items()
    }
