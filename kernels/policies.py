"""Weight policies: from the attention mass of each segment to a factor for each segment.

A policy sees the four masses of one row and head (text, text sink, visual sink, visual content; they sum to 1 unless
the model has learned sink logits) and returns four factors. Because it needs nothing else, it can run inside a fused
kernel, after one pass over the keys.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class SegmentPolicy(Protocol):
    """Anything that turns segment masses into segment weights."""

    def weights(self, masses: Tensor) -> Tensor:
        """Factors for the four segments.

        Args:
            masses: [..., H, R, 4] attention mass of each segment.

        Returns:
            [..., H, R, 4] factors, same dtype.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearForm:
    """A policy in terms of sums of masses, so that it costs a handful of operations in a decode step.

    With c = masses @ combinations, a row and head is selected where every column of c reaches its threshold, and its
    factors are 1 + spread[0] + (c[4] / c[3]) spread[1]; elsewhere they are 1.

    Attributes:
        combinations: [4, 5]; column 3 is the mass that receives, column 4 the mass that is moved.
        thresholds: [5] or [H, 1, 5]; column 3's is above 0.
        spread: [2, 4].
    """

    combinations: Tensor
    thresholds: Tensor
    spread: Tensor

    def selected_gain(self, combined: Tensor) -> Tensor:
        """[..., 2]: (1, c[4] / c[3]) where selected and (0, 0) elsewhere, for `combined` = c of shape [..., 5]."""
        selected = (combined >= self.thresholds).all(-1, keepdim=True)
        receiving_and_moved = combined[..., 3:]
        # Where nothing receives, the quotient is not finite, but then the row is not selected either.
        return torch.where(selected, receiving_and_moved / combined[..., 3:4], 0.0)


class LinearPolicy:
    """Base of the policies that have a linear form."""

    def linear_form(self, device: torch.device, dtype: torch.dtype) -> LinearForm:
        """The policy's matrices."""
        raise TypeError(f"{type(self).__name__} must define its linear form")

    def weights(self, masses: Tensor) -> Tensor:
        """See `SegmentPolicy.weights`."""
        form = self.linear_form(masses.device, masses.dtype)
        return 1 + form.selected_gain(masses @ form.combinations) @ form.spread


@dataclass(frozen=True, kw_only=True)
class MoveSinksToContent(LinearPolicy):
    """VAR's policy (arXiv 2503.03321): sinks of image-centric heads give budget to the visual content tokens.

    A row and head is image-centric when at least `min_visual_mass` of its attention is on visual tokens, at least
    `min_content_share` of that on content tokens, and some of it on a visual sink. There, every sink keeps
    `1 - move_fraction` of its weight and the visual content takes the rest in proportion; the row sum is kept.
    """

    move_fraction: float
    min_content_share: float
    min_visual_mass: float

    def linear_form(self, device: torch.device, dtype: torch.dtype) -> LinearForm:
        """Columns: visual mass, content above its required share, visual sink, content, moved mass."""
        move, share = self.move_fraction, self.min_content_share
        tiny = torch.finfo(dtype).tiny
        return _linear_form(
            (
                (0.0, 0.0, 0.0, 0.0, 0.0),
                (0.0, 0.0, 0.0, 0.0, move),
                (1.0, -share, 1.0, 0.0, move),
                (1.0, 1.0 - share, 0.0, 1.0, 0.0),
            ),
            (self.min_visual_mass, 0.0, tiny, tiny, 0.0),
            ((0.0, -move, -move, 0.0), (0.0, 0.0, 0.0, 1.0)),
            device,
            dtype,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MoveSinksToRest(LinearPolicy):
    """ACT's policy (ICML 2024): sinks keep `1 - move_fraction`; all other keys take the rest in proportion.

    Attributes:
        move_fraction: share of each sink's weight that is given away (the paper's 1 - beta).
        heads: [H] bool, the calibrated heads; None calibrates every head.
    """

    move_fraction: float
    heads: Tensor | None = None

    def linear_form(self, device: torch.device, dtype: torch.dtype) -> LinearForm:
        """Columns: sinks (three times), the rest, moved mass; heads that are not calibrated reach no threshold."""
        move, tiny = self.move_fraction, torch.finfo(dtype).tiny
        form = _linear_form(
            (
                (0.0, 0.0, 0.0, 1.0, 0.0),
                (1.0, 1.0, 1.0, 0.0, move),
                (1.0, 1.0, 1.0, 0.0, move),
                (0.0, 0.0, 0.0, 1.0, 0.0),
            ),
            (tiny, tiny, tiny, tiny, 0.0),
            ((0.0, -move, -move, 0.0), (1.0, 0.0, 0.0, 1.0)),
            device,
            dtype,
        )
        if self.heads is None:
            return form
        calibrated = self.heads.to(device)[:, None, None]
        thresholds = form.thresholds.where(calibrated, float("inf"))
        return LinearForm(combinations=form.combinations, thresholds=thresholds, spread=form.spread)


Rows = tuple[tuple[float, ...], ...]


@lru_cache(maxsize=64)
def _linear_form(
    combinations: Rows, thresholds: tuple[float, ...], spread: Rows, device: torch.device, dtype: torch.dtype
) -> LinearForm:
    """The form on a device, made once."""
    matrices = (torch.tensor(values, device=device, dtype=dtype) for values in (combinations, thresholds, spread))
    return LinearForm(**dict(zip(("combinations", "thresholds", "spread"), matrices)))
