"""Random draws that are the same on every machine, Python and NumPy version.

``random.Random`` and ``numpy.random.Generator`` may change what ``choice`` or ``integers`` return between releases. The
raw 64-bit stream of a NumPy *bit generator* is guaranteed never to change (NumPy enhancement proposal 19), so
everything here is integer arithmetic on that stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


class Draws:
    """A stream of integer draws, seeded by one or several non-negative integers."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(list(seed))

    def below(self, bound: int) -> int:
        """An integer in ``[0, bound)``; the modulo bias is below 2**-50 for the bounds used here."""
        return int(self._bits.random_raw()) % bound

    def between(self, low: int, high: int) -> int:
        """An integer in ``[low, high]``, both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 draws."""
        return self.below(100) < percent

    def choice(self, items: Sequence[Item]) -> Item:
        """One item, all equally likely."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """A new list in random order (Fisher-Yates)."""
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = self.below(last + 1)
            out[last], out[other] = out[other], out[last]
        return out

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """``count`` different items in random order, all of them if there are fewer."""
        return self.shuffled(items)[:count]

    def triangular(self, spread: int) -> int:
        """An integer in ``[-spread, spread]``, near zero more often (the sum of two uniform draws)."""
        return self.below(spread + 1) - self.below(spread + 1)

    def noise(self, shape: tuple[int, ...], sigma: int) -> np.ndarray:
        """Near-normal int32 noise of standard deviation ``sigma``: the sum of four random bytes, scaled."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(-(-count * 4 // 8)).astype("<u8")
        total = words.view(np.uint8)[: count * 4].reshape(-1, 4).astype(np.int32).sum(1) - 510
        # Four uniform bytes have a standard deviation of 147.8 together.
        return (total * sigma // 148).reshape(shape)
