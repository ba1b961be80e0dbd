"""From captions and votes to a choice: estimates with intervals, and the rule that picks one setting or none.

The rule keeps two axes apart, since one number made of both chose worse. A setting may be chosen where, against the
plain model and by every vote, the share of absent mentions falls, by the self-check by half a point or more; where
present things are not fewer; and where captions stay about as long. Of those it is the one with the largest fall by the
self-check; its interval is told, since one that holds 0 may be chance. With too few pictures nothing is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_guard.eval.run.statistics import LEAST_PICTURES, ImageCounts, Interval, differences, intervals
from vlm_guard.eval.tasks.shared.metric import Counts, Metric, ratio
from vlm_guard.eval.tuning.votes import SELF_CHECK, Votes

PLAIN = "none"
PRESENT_SLACK = 0.01
"""So large a share of the present things may be lost."""
LEAST_FALL = 0.005
"""Of the share of absent mentions: for less, nobody would decode in another and often slower way."""
LENGTHS = (0.67, 1.5)
"""Captions may become shorter or longer by these factors."""
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption of one picture.

    Attributes:
        text: the caption.
        nouns: the things it names, in order, each as often as it is named.
    """

    text: str
    nouns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is estimated of one setting.

    Attributes:
        label: its line.
        values: by metric, with intervals.
        changes: the same against the plain model; empty for that.
        objections: why it may not be chosen; empty where it may.
    """

    label: str
    values: Mapping[str, Interval]
    changes: Mapping[str, Interval]
    objections: tuple[str, ...] = ()


def absent_share(kind: str) -> str:
    """Name of the metric: the share of mentions that a vote says are absent."""
    return f"absent.{kind}"


def present_things(kind: str) -> str:
    """Name of the metric: distinct things of a caption that a vote says are present."""
    return f"present.{kind}"


def metrics(kinds: Sequence[str]) -> tuple[Metric, ...]:
    """The estimated numbers."""
    found = [Metric(name="words", label="words", kind="length", better=None, compute=_per_caption("words"))]
    for kind in kinds:
        name = absent_share(kind)
        found.append(Metric(name=name, label=name, kind="share", better="lower", compute=_share(kind)))
        name = present_things(kind)
        found.append(Metric(name=name, label=name, kind="length", better="higher", compute=_per_caption(name)))
    return tuple(found)


def _per_caption(name: str) -> Any:
    return lambda counts: ratio(counts[name], counts["captions"])


def _share(kind: str) -> Any:
    def compute(counts: Counts) -> np.ndarray:
        return ratio(counts[absent_share(kind)], counts["mentions"])

    return compute


def counts_of(picture: int, caption: Caption, votes: Votes) -> dict[str, float]:
    """What one caption adds to the sums."""
    counts: dict[str, float] = {"captions": 1, "words": len(caption.text.split()), "mentions": len(caption.nouns)}
    for kind in votes.kinds:
        present = [votes.present(kind, picture, noun) for noun in caption.nouns]
        counts[absent_share(kind)] = present.count(False)
        counts[present_things(kind)] = len({noun for noun, there in zip(caption.nouns, present) if there})
    return counts


def estimate(captions: Mapping[str, Mapping[int, Caption]], votes: Votes) -> list[Estimate]:
    """Every setting's numbers against the plain model's.

    Args:
        captions: by label and picture, the plain model's under "none".
        votes: on all their nouns.
    """
    wanted = metrics(votes.kinds)
    names = ["captions", "words", "mentions", *(metric.name for metric in wanted if metric.name != "words")]
    sums = {
        label: ImageCounts(names, [(picture, counts_of(picture, caption, votes)) for picture, caption in own.items()])
        for label, own in captions.items()
    }
    plain = intervals(sums[PLAIN], wanted, RESAMPLES, 0)
    found = [Estimate(label=PLAIN, values=plain, changes={})]
    for label, counts in sums.items():
        if label != PLAIN:
            values = intervals(counts, wanted, RESAMPLES, 0)
            changes = differences(sums[PLAIN], counts, wanted, RESAMPLES, 0)
            objections = tuple(_objections(plain, values, changes, votes.kinds))
            found.append(Estimate(label=label, values=values, changes=changes, objections=objections))
    return found


def _objections(
    plain: Mapping[str, Interval], values: Mapping[str, Interval], changes: Mapping[str, Interval], kinds: Sequence[str]
) -> list[str]:
    found = []
    rising = [kind for kind in kinds if changes[absent_share(kind)].value >= 0]
    if rising:
        found.append(f"absent mentions do not fall by {' and '.join(rising)}")
    elif changes[absent_share(SELF_CHECK)].value > -LEAST_FALL:
        found.append(f"absent mentions fall by less than {100 * LEAST_FALL:g} points")
    present = present_things(SELF_CHECK)
    if changes[present].value < -PRESENT_SLACK * plain[present].value:
        found.append("fewer present things are named")
    longer = values["words"].value / max(plain["words"].value, 1e-9)
    if not LENGTHS[0] <= longer <= LENGTHS[1]:
        found.append(f"captions have {longer:.2f} times the words")
    return found


def choose(estimates: Sequence[Estimate], pictures: int) -> tuple[str, str]:
    """The label to use, "none" where nothing may be chosen, and why.

    Args:
        estimates: of `estimate`.
        pictures: how many they rest on.
    """
    if pictures < LEAST_PICTURES:
        return PLAIN, f"{pictures} pictures are too few to choose by; give at least {LEAST_PICTURES}"
    allowed = [item for item in estimates if item.changes and not item.objections]
    if not allowed:
        return PLAIN, "no setting lowers the share of absent mentions by every vote without costing present ones"
    best = min(allowed, key=lambda item: item.values[absent_share(SELF_CHECK)].value)
    change = best.changes[absent_share(SELF_CHECK)]
    return best.label, (
        f"largest fall of the estimated share of absent mentions, {100 * change.value:+.1f} points "
        f"({100 * change.low:+.1f} to {100 * change.high:+.1f}), of {len(allowed)} that may be chosen"
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation with mean ranks for ties; not a number where either side has one rank only."""
    ranks = [_ranks(values) for values in (first, second)]
    spread = [float(rank.std()) for rank in ranks]
    if not all(spread):
        return float("nan")
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / (spread[0] * spread[1]))


def _ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, float)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])
