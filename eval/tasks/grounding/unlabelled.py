"""What scores of mentions say about pictures of which nothing is known: how many things the model doubts itself.

None of these numbers says what is right. A share of doubtful mentions becomes a share of wrong ones only as far as the
scores are good, and how good they are is measured on pictures with labels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_guard.eval.tasks.grounding.counts import FIFTHS
from vlm_guard.eval.tasks.shared.metric import Better, Kind, Metric, share

SCORE_BINS = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def has_truth(score: Mapping[str, Any]) -> bool:
    """Whether a record's `score` knows the objects of its picture."""
    return score.get("objects") is not None


def doubt_counts(score: Mapping[str, Any], words: int) -> dict[str, float]:
    """What one answer adds: its mentions by verdict, their scores, and what repair changed."""
    verdicts = Counter(mention["verdict"] for mention in score["mentions"])
    checked, doubtful = verdicts["grounded"] + verdicts["doubtful"], verdicts["doubtful"]
    repaired = score.get("repaired")
    return {
        "answers": 1.0,
        "words": float(words),
        "mentions": float(len(score["mentions"])),
        "checked": float(checked),
        "doubtful": float(doubtful),
        "scores": float(sum(_scores(score))),
        "answers_checked": float(checked > 0),
        "answers_doubtful": float(doubtful > 0),
        "answers_repaired": float(repaired is not None and bool(repaired["removed"])),
        "words_kept": float(words if repaired is None else len(repaired["text"].split())),
    }


def doubt_metrics(*, repaired: bool) -> tuple[Metric, ...]:
    """The numbers that need no labels; those of the repair only where there was one."""
    found = [
        _metric("mentions", "mentions", "length", None, "mentions", "answers"),
        _metric("mean_score", "mean score", "share", None, "scores", "checked"),
        _metric("doubtful", "doubtful", "share", None, "doubtful", "checked"),
        _metric("answers_doubtful", "answers with doubt", "share", None, "answers_doubtful", "answers_checked"),
    ]
    if repaired:
        found += [
            _metric("answers_repaired", "answers repaired", "share", None, "answers_repaired", "answers"),
            _metric("words_kept", "words kept", "share", None, "words_kept", "words"),
        ]
    return tuple(found)


def doubt_summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mentions by verdict, answers by the verdicts in them, and where scores lie, of answered records."""
    scores = [record["score"] for record in records]
    values = sorted(value for score in scores for value in _scores(score))
    kinds = Counter(_kind_of_answer(score) for score in scores)
    fifths = {verdict: [0] * FIFTHS for verdict in ("grounded", "doubtful")}
    for score in scores:
        for mention in score["mentions"]:
            if mention["verdict"] in fifths:
                place = min(FIFTHS - 1, FIFTHS * mention["start"] // max(1, score["length"]))
                fifths[mention["verdict"]][place] += 1
    bins = Counter(min(SCORE_BINS - 1, int(SCORE_BINS * value)) for value in values)
    return {
        "labels": False,
        "captions": len(records),
        "mentions": len(values),
        "unchecked_mentions": sum(mention["score"] is None for score in scores for mention in score["mentions"]),
        "verdicts": dict(Counter(mention["verdict"] for score in scores for mention in score["mentions"])),
        "answers": {name: kinds[name] for name in ("all grounded", "some doubtful", "all doubtful", "nothing checked")},
        "mentions_by_fifth": [sum(pair) for pair in zip(*fifths.values())],
        "doubtful_by_fifth": fifths["doubtful"],
        "scores_in_tenths": [bins[place] for place in range(SCORE_BINS)],
        "score_quantiles": {f"{at:g}": float(np.quantile(values, at)) for at in _QUANTILES} if values else {},
    }


def _scores(score: Mapping[str, Any]) -> list[float]:
    return [mention["score"] for mention in score["mentions"] if mention["score"] is not None]


def _kind_of_answer(score: Mapping[str, Any]) -> str:
    """An answer by the verdicts of its mentions."""
    verdicts = {mention["verdict"] for mention in score["mentions"]} - {"unchecked"}
    if not verdicts:
        return "nothing checked"
    if len(verdicts) == 2:
        return "some doubtful"
    return "all grounded" if verdicts == {"grounded"} else "all doubtful"


def _metric(name: str, label: str, kind: Kind, better: Better, part: str, whole: str) -> Metric:
    return Metric(name=f"grounding.{name}", label=label, kind=kind, better=better, compute=share(part, whole))
