"""Comparisons that take the easy explanation of a gain away: "it only says yes less often", "it only writes less".

For yes/no questions a method is compared with the baseline whose answers are shifted by one constant, so far that it
says yes as often as the method: what is left is not a matter of leaning to yes or no (arXiv 2504.10020 asks for this).
For captions see `vlm_guard.eval.tasks.chair.places`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MARGIN = "yes_margin"
"""Field of a record: largest logit of a yes token minus largest logit of a no token, where the answer begins."""


@dataclass(frozen=True, kw_only=True)
class FairPair:
    """Two sets of records of the same samples that may be compared fairly.

    Attributes:
        what: the comparison in words.
        baseline: records of the changed baseline.
        other: records of the method, changed too where the comparison needs it.
        metrics: the difference (method minus baseline) of which metric is reported under which name.
        facts: what was done, as JSON can hold it.
    """

    what: str
    baseline: list[dict[str, Any]]
    other: list[dict[str, Any]]
    metrics: dict[str, str]
    facts: dict[str, float]


def yes_matched(
    baseline: Sequence[dict[str, Any]],
    other: Sequence[dict[str, Any]],
    metrics: dict[str, str],
    weight: Callable[[dict[str, Any]], int] = lambda record: 1,
) -> FairPair | None:
    """The baseline with a constant added to its preference for yes, so that it says yes as often as the method.

    Args:
        baseline: its answered records; those with a `yes_margin` are used.
        other: the method's answered records.
        metrics: for `FairPair.metrics`.
        weight: how often a record counts in the share of yes.

    Returns:
        None where no record of the baseline that the method answered, too, has a margin.
    """
    margins = {record["sample"]: record for record in baseline if isinstance(record.get(MARGIN), int | float)}
    asked = [record for record in other if record["sample"] in margins]
    if not asked:
        return None
    wanted = sum(weight(record) for record in asked if record["score"]["answer"] == "yes")
    ranked = sorted((margins[record["sample"]] for record in asked), key=lambda record: -record[MARGIN])
    said, offset = _cut(ranked, wanted, weight)
    control = [_answered(record, record[MARGIN] + offset > 0) for record in ranked]
    total = sum(weight(record) for record in asked)
    return FairPair(
        what="the difference to the baseline whose preference for yes is shifted by a constant to say it as often",
        baseline=control,
        other=list(asked),
        metrics=metrics,
        facts={"offset": offset, "yes_ratio": wanted / total, "control_yes_ratio": said / total},
    )


def _cut(ranked: Sequence[dict[str, Any]], wanted: int, weight: Callable[[dict[str, Any]], int]) -> tuple[int, float]:
    """How many yes the best constant gives, and that constant; records come with the largest margin first.

    Records of the same margin cannot be told apart by a constant, so cuts lie between different ones.
    """
    margins = [record[MARGIN] for record in ranked]
    best, offset, said = abs(wanted), -margins[0] - 1.0, 0
    count = 0
    for place, record in enumerate(ranked):
        count += weight(record)
        last = place + 1 == len(ranked)
        if not last and margins[place + 1] == margins[place]:
            continue
        if abs(count - wanted) < best:
            following = margins[place] - 2.0 if last else margins[place + 1]
            best, offset, said = abs(count - wanted), -(margins[place] + following) / 2, count
    return said, offset


def _answered(record: dict[str, Any], yes: bool) -> dict[str, Any]:
    """A record with another answer."""
    word = "yes" if yes else "no"
    return {**record, "text": word.capitalize(), "score": {**record["score"], "answer": word}}
