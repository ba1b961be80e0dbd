"""The paired bootstrap against a plain loop and against known distributions."""

import numpy as np
import pytest

from vlm_guard.eval.run.statistics import ImageCounts, Interval, differences, intervals, verdict
from vlm_guard.eval.tasks.chair.task import CHAIR_METRICS
from vlm_guard.eval.tasks.pope.task import pope_metrics
from vlm_guard.eval.tasks.shared.metric import Metric, ratio

SHARE = Metric(
    name="share",
    label="share",
    kind="share",
    better="lower",
    compute=lambda counts: ratio(counts["bad"], counts["all"]),
)


def counts(bad: np.ndarray, total: np.ndarray, first_image: int = 0) -> ImageCounts:
    entries = ((first_image + place, {"bad": b, "all": t}) for place, (b, t) in enumerate(zip(bad, total)))
    return ImageCounts(("bad", "all"), entries)


def test_resamples_are_ratios_of_sums_over_drawn_images():
    generator = np.random.default_rng(1)
    total = generator.integers(1, 9, 40)
    bad = generator.integers(0, total + 1)
    drawn = counts(bad, total).resampled([SHARE], 50, seed=3)["share"]
    choices = np.random.default_rng(3).integers(40, size=(50, 40))
    expected = [bad[choice].sum() / total[choice].sum() for choice in choices]
    assert drawn == pytest.approx(expected)


def test_draws_do_not_depend_on_how_they_are_cut_into_chunks(monkeypatch):
    generator = np.random.default_rng(2)
    sample = counts(generator.integers(0, 3, 30), np.full(30, 3))
    whole = sample.resampled([SHARE], 100, seed=5)["share"]
    monkeypatch.setattr("vlm_guard.eval.run.statistics._CHUNK_CELLS", 7 * 30)
    assert np.array_equal(sample.resampled([SHARE], 100, seed=5)["share"], whole)


def test_the_interval_covers_like_the_normal_theory():
    generator = np.random.default_rng(3)
    bad = (generator.random(2000) < 0.3).astype(int)
    interval = intervals(counts(bad, np.ones(2000, int)), [SHARE], 4000, seed=0)["share"]
    error = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert interval.value == pytest.approx(bad.mean())
    assert interval.high - interval.value == pytest.approx(error, rel=0.08)
    assert interval.value - interval.low == pytest.approx(error, rel=0.08)
    assert interval.images == 2000


def test_pairing_removes_what_the_images_share():
    generator = np.random.default_rng(4)
    total = np.full(300, 10)
    hard = generator.integers(0, 10, 300)
    better = np.maximum(hard - (generator.random(300) < 0.2), 0)
    base, other = counts(hard, total), counts(better, total)
    paired = differences(base, other, [SHARE], 2000, seed=0)["share"]
    alone = intervals(base, [SHARE], 2000, seed=0)["share"]
    assert paired.value == pytest.approx((better.sum() - hard.sum()) / total.sum())
    assert paired.high < 0
    assert (paired.high - paired.low) < 0.2 * (alone.high - alone.low)
    assert verdict(paired, SHARE) == "better"


def test_equal_methods_differ_by_exactly_nothing():
    base = counts(np.arange(20) % 3, np.full(20, 3))
    same = differences(base, counts(np.arange(20) % 3, np.full(20, 3)), [SHARE], 200, seed=0)["share"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert verdict(same, SHARE) == "unclear"


def test_only_images_both_have_are_compared():
    base = counts(np.array([1, 1, 0]), np.ones(3, int))
    other = counts(np.array([0, 0, 0]), np.ones(3, int), first_image=1)
    found = differences(base, other, [SHARE], 100, seed=0)["share"]
    assert found.images == 2
    assert found.value == pytest.approx(-0.5)
    assert differences(base, counts(np.ones(2), np.ones(2), 10), [SHARE], 100, seed=0) == {}


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (-2.0, -1.0, "lower", "better"),
        (1.0, 2.0, "lower", "worse"),
        (1.0, 2.0, "higher", "better"),
        (-2.0, -1.0, "higher", "worse"),
        (1.0, 2.0, None, "changed"),
        (-1.0, 2.0, "lower", "unclear"),
        (0.0, 2.0, "lower", "unclear"),
    ],
)
def test_verdicts(low, high, better, expected):
    metric = Metric(name="m", label="m", kind="share", better=better, compute=lambda counts: 0)
    assert verdict(Interval(value=(low + high) / 2, low=low, high=high, images=5), metric) == expected


def test_metrics_without_anything_to_count_are_zero():
    for metrics in (CHAIR_METRICS, pope_metrics(["random"])):
        empty = ImageCounts((), [(1, {})])
        assert set(empty.values(metrics).values()) == {0.0}


@pytest.mark.slow
def test_forty_thousand_images():
    """A loop over images and resamples in Python would not come to an end here."""
    generator = np.random.default_rng(0)
    sample = counts(generator.integers(0, 4, 40_504), np.full(40_504, 4))
    found = intervals(sample, [SHARE], 1000, seed=0)["share"]
    # 0 to 3 of 4, each as likely: the standard deviation of an image's share is sqrt(1.25) / 4.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1.25**0.5 / 4 / 40_504**0.5, rel=0.1)
