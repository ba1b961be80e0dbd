"""What one answer adds to the histograms that the grounding task computes its numbers from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_guard.eval.tasks.grounding.curves import (
    auroc,
    average_precision,
    calibration_error,
    ordered_pairs,
    risk_coverage_area,
)
from vlm_guard.eval.tasks.shared.metric import Better, Counts, Metric, ratio

BINS = 128
FIFTHS = 5
CALIBRATION_BINS = 10
# The score, then the parts, then the place in the answer, which every score has to beat.
SCORE, POSITION = "score", "position"
# The ends of the histograms: scores as log odds, positions as tokens in front of a mention.
_ENDS = {"lens": (-16.0, 0.0), "self_check": (-16.0, 16.0), SCORE: (-12.0, 12.0), POSITION: (-128.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class JudgedMention:
    """A scored mention whose truth is known.

    Attributes:
        values: the score and the parts by name, larger for what should be in the picture.
        good: whether it is.
        fifth: the fifth of the answer that it begins in, 0 to 4.
        score: between 0 and 1.
    """

    values: Mapping[str, float]
    good: bool
    fifth: int
    score: float


def judged(score: Mapping[str, Any]) -> list[JudgedMention]:
    """The scored mentions of a record's `score`; unchecked ones are left out."""
    objects, length = set(score["objects"]), max(1, score["length"])
    found = []
    for mention in score["mentions"]:
        if mention["score"] is None:
            continue
        chance = min(max(mention["score"], 1e-9), 1 - 1e-9)
        measured = {SCORE: math.log(chance / (1 - chance)), POSITION: -float(mention["token_span"][0])}
        values = measured | mention["parts"]
        fifth = min(FIFTHS - 1, FIFTHS * mention["start"] // length)
        good = mention["noun"] in objects
        found.append(JudgedMention(values=values, good=good, fifth=fifth, score=mention["score"]))
    return found


def mention_counts(mentions: Sequence[JudgedMention]) -> dict[str, float]:
    """Histograms of every value by truth and fifth, and the bins of calibration, as named counts."""
    counts: dict[str, float] = {}

    def add(name: str, amount: float = 1.0) -> None:
        counts[name] = counts.get(name, 0.0) + amount

    for mention in mentions:
        truth = "good" if mention.good else "bad"
        for name, value in mention.values.items():
            add(f"{name}.{mention.fifth}.{truth}.{_bin(name, value)}")
        place = min(CALIBRATION_BINS - 1, int(CALIBRATION_BINS * mention.score))
        add(f"calibration.count.{place}")
        add(f"calibration.score.{place}", mention.score)
        add(f"calibration.good.{place}", float(mention.good))
    return counts


def histograms(counts: Counts, name: str) -> tuple[np.ndarray, np.ndarray]:
    """[..., 5, K] good and bad mentions by fifth of the answer and bin of a value."""
    good, bad = (
        np.stack(
            [
                np.stack([np.asarray(counts[f"{name}.{fifth}.{truth}.{place}"]) for place in range(BINS)], -1)
                for fifth in range(FIFTHS)
            ],
            -2,
        )
        for truth in ("good", "bad")
    )
    return good, bad


def grounding_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """The numbers of every value, of the score first."""
    found: list[Metric] = []
    for name in names:
        found += [
            _metric(f"auroc.{name}", f"AUROC {name}", "higher", _overall(name, auroc)),
            _metric(f"aupr.{name}", f"AUPR {name}", "higher", _overall(name, average_precision)),
            _metric(f"aurc.{name}", f"risk area {name}", "lower", _overall(name, risk_coverage_area)),
            _metric(f"auroc_in_fifths.{name}", f"AUROC in fifths {name}", "higher", _in_fifths(name)),
        ]
    return (*found, _metric("ece", "calibration error", "lower", _calibration))


def _metric(name: str, label: str, better: Better, compute: Any) -> Metric:
    return Metric(name=f"grounding.{name}", label=label, kind="share", better=better, compute=compute)


def _overall(name: str, curve: Any) -> Any:
    def compute(counts: Counts) -> np.ndarray:
        good, bad = histograms(counts, name)
        return curve(good.sum(-2), bad.sum(-2))

    return compute


def _in_fifths(name: str) -> Any:
    """AUROC over pairs of the same fifth of their answers: late mentions are not compared with early ones."""

    def compute(counts: Counts) -> np.ndarray:
        good, bad = histograms(counts, name)
        pairs = (good.sum(-1) * bad.sum(-1)).sum(-1)
        return np.where(pairs > 0, ratio(ordered_pairs(good, bad).sum(-1), pairs), 0.5)

    return compute


def _calibration(counts: Counts) -> np.ndarray:
    count, score, good = (
        np.stack([np.asarray(counts[f"calibration.{what}.{place}"]) for place in range(CALIBRATION_BINS)], -1)
        for what in ("count", "score", "good")
    )
    return calibration_error(count, score, good)


def _bin(name: str, value: float) -> int:
    low, high = _ENDS.get(name, (-16.0, 16.0))
    return min(BINS - 1, max(0, int(BINS * (value - low) / (high - low))))
