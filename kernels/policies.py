"""Weight policies: from the attention mass of each segment to a factor for each segment.

A policy sees the four masses of one row and head (text, text sink, visual sink, visual content; they sum to 1 unless
the model has learned sink logits) and returns four factors. Because it needs nothing else, it can run inside a fused
kernel, after one pass over the keys.
"""

from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True, kw_only=True)
class MoveSinksToContent:
    """VAR's policy (arXiv 2503.03321): sinks of image-centric heads give budget to the visual content tokens.

    A row and head is image-centric when at least `min_visual_mass` of its attention is on visual tokens, at least
    `min_content_share` of that on content tokens, and some of it on a visual sink. There, every sink keeps
    `1 - move_fraction` of its weight and the visual content takes the rest in proportion; the row sum is kept.
    """

    move_fraction: float
    min_content_share: float
    min_visual_mass: float

    def weights(self, masses: Tensor) -> Tensor:
        """See `SegmentPolicy.weights`."""
        # A decode step spends its time on launching operations, not in them, so the conditions and the moved mass
        # come out of one product with a 4 x 5 matrix instead of some twenty element-wise operations.
        combinations, thresholds, kept, content_only, one = self._constants(masses.device, masses.dtype)
        combined = torch.mm(masses.reshape(-1, 4), combinations)
        selected = (combined >= thresholds).all(-1, keepdim=True)
        # Without any content the quotient is not finite, but then the row is not selected either.
        factors = torch.addcmul(kept, content_only, combined[:, 4:] / combined[:, 3:4])
        return torch.where(selected, factors, one).view(masses.shape)

    @cache  # noqa: B019 - keyed by a frozen value; a process uses a handful of settings, devices and dtypes
    def _constants(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Columns of the combinations: visual mass, content above its required share, visual sink, content, moved."""
        move, share = self.move_fraction, self.min_content_share
        combinations = torch.tensor(
            [
                [0.0, 0.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, 0.0, 0.0, move],
                [1.0, -share, 1.0, 0.0, move],
                [1.0, 1.0 - share, 0.0, 1.0, 0.0],
            ],
            device=device,
            dtype=dtype,
        )
        tiny = torch.finfo(dtype).tiny
        thresholds = torch.tensor([self.min_visual_mass, 0.0, tiny, tiny, -1.0], device=device, dtype=dtype)
        kept = torch.tensor([1.0, 1.0 - move, 1.0 - move, 1.0], device=device, dtype=dtype)
        content_only = torch.tensor([0.0, 0.0, 0.0, 1.0], device=device, dtype=dtype)
        one = torch.ones((), device=device, dtype=dtype)
        return combinations, thresholds, kept, content_only, one


@dataclass(frozen=True, kw_only=True, eq=False)
class MoveSinksToRest:
    """ACT's policy (ICML 2024): sinks keep `1 - move_fraction`; all other keys take the rest in proportion.

    Attributes:
        move_fraction: share of each sink's weight that is given away (the paper's 1 - beta).
        heads: [H] bool, the calibrated heads; None calibrates every head.
    """

    move_fraction: float
    heads: Tensor | None = None

    def weights(self, masses: Tensor) -> Tensor:
        """See `SegmentPolicy.weights`."""
        text, text_sink, visual_sink, content = masses.unbind(-1)
        sinks = text_sink + visual_sink
        rest = text + content
        selected = (rest > 0) & (sinks > 0)
        if self.heads is not None:
            selected = selected & self.heads[:, None]
        one = torch.ones_like(text)
        sink_factor = torch.where(selected, 1 - self.move_fraction, one)
        tiny = torch.finfo(rest.dtype).tiny
        rest_factor = torch.where(selected, 1 + self.move_fraction * sinks / rest.clamp_min(tiny), one)
        return torch.stack((rest_factor, sink_factor, sink_factor, rest_factor), -1)
