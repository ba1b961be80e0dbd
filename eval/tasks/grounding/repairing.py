"""What repair does to captions: CHAIR, recall and length before and after, and whether the text stays whole."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_guard.eval.tasks.shared.metric import Better, Counts, Kind, Metric, ratio
from vlm_guard.grounding.mention import MentionFinder
from vlm_guard.grounding.repair import Repaired
from vlm_guard.grounding.score import REPAIR_BELOW

# What a repaired text must not have; perplexity would need another model.
FAULTS = {
    "double space": re.compile(r"  "),
    "space in front of a mark": re.compile(r"\s[,.;:!?]"),
    "mark without a word": re.compile(r"(?:^|[,;:])\s*[,.;:]"),
    "dangling conjunction or preposition": re.compile(
        r"\b(?:and|or|with|of|a|an|the|in|on|next to|behind)\s*[.,;!?]", re.IGNORECASE
    ),
    "sentence in lower case": re.compile(r"(?:^|[.!?]\s+)[a-z]"),
}
_END = re.compile(r"[.!?][\"'”’)]*$")


def faults_of(text: str, before: str) -> list[str]:
    """What is wrong with a repaired text that was not wrong before: the names of `FAULTS`, and "no end"."""
    found = [name for name, fault in FAULTS.items() if fault.search(text) and not fault.search(before)]
    if text and not _END.search(text) and _END.search(before):
        found.append("no end")
    return found


def repair_record(before: str, repaired: Repaired, find: MentionFinder) -> dict[str, Any]:
    """What a record holds of a repaired caption, its mentions as `find` finds them."""
    return {
        "text": repaired.text,
        "nouns": [mention.noun for mention in find(repaired.text)],
        "removed": [part.how for part in repaired.removed],
        "below": repaired.below,
        "faults": faults_of(repaired.text, before),
    }


def repair_counts(score: Mapping[str, Any], words: int) -> dict[str, float]:
    """What one caption adds: mentions, wrong ones, objects found and words, before and after."""
    objects, repaired = set(score["objects"]), score.get("repaired")
    counts: dict[str, float] = {"captions": 1.0, "objects": float(len(objects))}
    sides = {"before": ([mention["noun"] for mention in score["mentions"]], words)}
    if repaired is not None:
        sides["after"] = (repaired["nouns"], len(repaired["text"].split()))
        counts["faulty"] = float(bool(repaired["faults"]))
    for side, (nouns, length) in sides.items():
        counts[f"{side}.mentions"] = float(len(nouns))
        counts[f"{side}.wrong"] = float(sum(noun not in objects for noun in nouns))
        counts[f"{side}.found"] = float(len(objects.intersection(nouns)))
        counts[f"{side}.words"] = float(length)
    return counts


def repair_losses(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What repair took from recall: objects of a picture that its caption named and the repaired one does not.

    Returns:
        "by_own_score": those every mention of which failed; "with_others": those that went with a sentence in which
        something else failed; "words": how often each.
    """
    found: dict[str, Any] = {"by_own_score": 0, "with_others": 0}
    words: Counter[str] = Counter()
    for record in records:
        score, repaired = record["score"], record["score"].get("repaired")
        if repaired is None:
            continue
        named = {mention["noun"] for mention in score["mentions"]}
        # Records of earlier versions do not say it.
        below = repaired.get("below", REPAIR_BELOW)
        kept = {m["noun"] for m in score["mentions"] if m["score"] is None or m["score"] >= below}
        lost = named.intersection(score["objects"]) - set(repaired["nouns"])
        found["with_others"] += len(lost & kept)
        found["by_own_score"] += len(lost - kept)
        words.update(lost)
    return found | {"words": dict(sorted(words.items(), key=lambda item: (-item[1], item[0])))}


def repair_metrics() -> tuple[Metric, ...]:
    """CHAIR_i, recall and words before and after, their paired differences, and the share of faulty captions."""
    parts: tuple[tuple[str, str, str, Kind, Better], ...] = (
        ("chair_i", "wrong", "mentions", "share", "lower"),
        ("recall", "found", "objects", "share", "higher"),
        ("words", "words", "captions", "length", None),
    )
    found = []
    for name, part, whole, kind, better in parts:
        for side in ("before", "after"):
            found.append(_metric(f"{side}.{name}", kind, better, _rate(side, part, whole)))
        found.append(_metric(f"change.{name}", kind, better, _change(part, whole)))
    return (*found, _metric("faulty", "share", "lower", lambda counts: ratio(counts["faulty"], counts["captions"])))


def _metric(name: str, kind: Kind, better: Better, compute: Any) -> Metric:
    return Metric(
        name=f"grounding.repair.{name}",
        label=f"repair {name.replace('.', ' ')}",
        kind=kind,
        better=better,
        compute=compute,
    )


def _rate(side: str, part: str, whole: str) -> Any:
    total = f"{side}.{whole}" if whole == "mentions" else whole
    return lambda counts: ratio(counts[f"{side}.{part}"], counts[total])


def _change(part: str, whole: str) -> Any:
    before, after = _rate("before", part, whole), _rate("after", part, whole)

    def compute(counts: Counts) -> np.ndarray:
        return after(counts) - before(counts)

    return compute
