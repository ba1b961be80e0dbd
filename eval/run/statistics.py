"""Intervals by the paired bootstrap over images.

Images are drawn with replacement; every metric is computed anew from the summed counts of the drawn images. Two
methods are compared on the *same* draws, so what an image contributes to both (its difficulty) cancels in the
difference. Intervals are percentile intervals. They say how much a number would move with other images of the same
kind; they do not cover other seeds, prompts or data sets, and of twenty comparisons at 95 % one is expected to be a
false alarm.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_guard.eval.tasks.shared.metric import Metric

LEVEL = 0.95
LEAST_PICTURES = 50
"""With fewer pictures intervals are so wide that no setting is recommended by them."""
FEW_PICTURES = 30
"""With fewer pictures an interval itself is a guess: so few resampled pictures miss what others would show."""
_CHUNK_CELLS = 2**23


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its bootstrap interval.

    Attributes:
        value: computed from all images.
        low: lower end of the interval.
        high: upper end of the interval.
        images: number of images it rests on.
    """

    value: float
    low: float
    high: float
    images: int


class ImageCounts:
    """Counts of every image, from records that each belong to one image.

    Args:
        names: the counts' names; a record that lacks one has 0 of it.
        entries: pairs of image id and counts, any number per image.
    """

    def __init__(self, names: Sequence[str], entries: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        self.names = tuple(names)
        column = {name: index for index, name in enumerate(self.names)}
        rows: dict[int, np.ndarray] = {}
        for image_id, counts in entries:
            row = rows.get(image_id)
            if row is None:
                row = rows[image_id] = np.zeros(len(self.names))
            for name, value in counts.items():
                row[column[name]] += value
        self.images = tuple(sorted(rows))
        self.table = np.array([rows[image] for image in self.images]).reshape(len(self.images), len(self.names))

    def restrict(self, images: Iterable[int]) -> "ImageCounts":
        """The counts of these images only, in ascending order of their ids."""
        wanted = set(images)
        keep = [index for index, image in enumerate(self.images) if image in wanted]
        restricted = ImageCounts(self.names, ())
        restricted.images = tuple(self.images[index] for index in keep)
        restricted.table = self.table[keep]
        return restricted

    def sums(self, table: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of summed counts, by name; a count that no record has is 0 everywhere."""
        zeros = np.zeros(table.shape[:-1])
        return defaultdict(lambda: zeros, {name: table[..., index] for index, name in enumerate(self.names)})

    def values(self, metrics: Sequence[Metric]) -> dict[str, float]:
        """Every metric over all images."""
        sums = self.sums(self.table.sum(0))
        return {metric.name: float(metric.compute(sums)) for metric in metrics}

    def without_value(self, metrics: Sequence[Metric]) -> set[str]:
        """The names of the metrics that say nothing here, since a count they need is 0 in all (`Metric.needs`)."""
        sums = self.sums(self.table.sum(0))
        return {metric.name for metric in metrics if metric.needs and not sums[metric.needs]}

    def resampled(self, metrics: Sequence[Metric], resamples: int, seed: int) -> dict[str, np.ndarray]:
        """[resamples] values of every metric; the draws depend only on the number of images and the seed."""
        count = len(self.images)
        generator = np.random.default_rng(seed)
        step = max(1, _CHUNK_CELLS // count)
        sums = []
        for begin in range(0, resamples, step):
            drawn = generator.integers(count, size=(min(step, resamples - begin), count))
            times = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(float)
            sums.append(times @ self.table)
        by_name = self.sums(np.concatenate(sums))
        return {metric.name: np.asarray(metric.compute(by_name)) for metric in metrics}


def intervals(counts: ImageCounts, metrics: Sequence[Metric], resamples: int, seed: int) -> dict[str, Interval]:
    """Every metric of one method with its interval; empty without images."""
    if not counts.images:
        return {}
    values, draws = counts.values(metrics), counts.resampled(metrics, resamples, seed)
    return {name: _interval(values[name], draws[name], len(counts.images)) for name in values}


def differences(
    baseline: ImageCounts, other: ImageCounts, metrics: Sequence[Metric], resamples: int, seed: int
) -> dict[str, Interval]:
    """Every metric's difference, other minus baseline, on the images both have; empty without any."""
    shared = set(baseline.images) & set(other.images)
    if not shared:
        return {}
    first, second = baseline.restrict(shared), other.restrict(shared)
    before, after = first.values(metrics), second.values(metrics)
    draws_before = first.resampled(metrics, resamples, seed)
    draws_after = second.resampled(metrics, resamples, seed)
    return {
        name: _interval(after[name] - before[name], draws_after[name] - draws_before[name], len(shared))
        for name in before
    }


def _interval(value: float, draws: np.ndarray, images: int) -> Interval:
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [outside, 1 - outside])
    return Interval(value=value, low=float(low), high=float(high), images=images)


def verdict(difference: Interval, metric: Metric) -> str:
    """What a difference says: better, worse, changed (neither way is better) or unclear (the interval has 0)."""
    if difference.low <= 0 <= difference.high:
        return "unclear"
    if metric.better is None:
        return "changed"
    return "better" if (difference.value > 0) == (metric.better == "higher") else "worse"
