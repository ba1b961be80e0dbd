"""Curves of a score that shall tell good mentions from bad ones, from histograms of both.

Histograms add up over pictures, so a subset or a resample of pictures has its curves by adding first; mentions of one
bin count as ties. Every function takes [..., K] counts, bins from low scores to high, and returns [...]. "Good"
mentions are in the picture, and should have the higher scores.
"""

import numpy as np

from vlm_guard.eval.tasks.shared.metric import ratio


def auroc(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """The chance that a good mention scores higher than a bad one (ties count half); 0.5 where there are no pairs."""
    pairs = good.sum(-1) * bad.sum(-1)
    return np.where(pairs > 0, ratio(ordered_pairs(good, bad), pairs), 0.5)


def ordered_pairs(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """How many pairs of a good and a bad mention are in the right order, ties counted half."""
    below = np.cumsum(bad, -1) - bad
    return (good * (below + 0.5 * bad)).sum(-1)


def average_precision(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Area under precision and recall of finding the bad mentions by low scores; a blind score has their share."""
    found, looked_at = np.cumsum(bad, -1), np.cumsum(good + bad, -1)
    return ratio((bad * ratio(found, looked_at)).sum(-1), bad.sum(-1))


def risk_coverage(good: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., K] share of mentions kept, and share of bad ones among the kept, when the best-scored are kept first."""
    kept = np.cumsum((good + bad)[..., ::-1], -1)
    return ratio(kept, kept[..., -1:]), ratio(np.cumsum(bad[..., ::-1], -1), kept)


def risk_coverage_area(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Mean risk over all coverages: 0 is best, and a blind score has the share of bad mentions."""
    _, risk = risk_coverage(good, bad)
    total = good + bad
    return ratio((total[..., ::-1] * risk).sum(-1), total.sum(-1))


def calibration_error(count: np.ndarray, score: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Expected calibration error: how far scores are from the share of good mentions, bin by bin.

    Args:
        count: mentions of each bin.
        score: sums of their scores.
        good: how many of them are good.
    """
    return ratio(np.abs(score - good).sum(-1), count.sum(-1))
