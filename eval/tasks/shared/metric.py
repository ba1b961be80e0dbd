"""Numbers a task reports, as functions of counts that add up over images.

Every metric is a ratio of sums, so any subset or resample of images gives its value by adding counts first: the same
definition for the corpus, for an interval and for a paired difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Counts = Mapping[str, np.ndarray]
Kind = Literal["share", "length", "difference"]
Better = Literal["higher", "lower"] | None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A reported number.

    Attributes:
        name: in results, for example "chair_i" or "pope.random.accuracy".
        label: in tables.
        kind: "share" is shown in percent, "length" with one decimal.
        better: which way is an improvement, or None where neither is one by itself.
        compute: the value from summed counts; works on arrays of sums of any shape. A count that no record has is 0.
        needs: a count without which the value says nothing, such as the whole of a share: where it is 0 in all, tables
            show no number. "" where there is none.
    """

    name: str
    label: str
    kind: Kind
    better: Better
    compute: Callable[[Counts], np.ndarray]
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric that tables show; the others are in results.json and CSV only.

    Attributes:
        metric: name of the metric.
        label: head of the column, short, with an arrow to the better side.
        kind: as the metric's: "share" is shown in percent, "length" with one decimal, "difference" in percentage
            points with its sign.
        better: which way is an improvement, where the metric is the difference of a fair pair and no `Metric`.
    """

    metric: str
    label: str
    kind: Kind = "share"
    better: Better = None


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient, and 0 where the whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def harmonic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The harmonic mean, and 0 where both are 0."""
    return ratio(2 * first * second, first + second)


def share(part: str, whole: str) -> Callable[[Counts], np.ndarray]:
    """The quotient of two counts by name, for `Metric.compute`."""
    return lambda counts: ratio(counts[part], counts[whole])
