"""Turning hidden states towards a direction without changing their length (VISTA, VTI)."""

from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction that hidden states are turned to.

    Attributes:
        unit: [..., D] float32 of length 1, or of zeros where there is none.
        length: [..., 1] float32, 1 or 0.
    """

    unit: Tensor
    length: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> "Direction":
        """From vectors [..., D] of any length."""
        wide = vectors.float()
        norm = wide.norm(dim=-1, keepdim=True)
        return cls(wide / norm.clamp_min(_TINY), (norm > 0).float())

    def to(self, device: torch.device) -> "Direction":
        """The same direction on another device."""
        return self if self.unit.device == device else Direction(self.unit.to(device), self.length.to(device))


def turn(hidden: Tensor, towards: Direction, strength: float, *, more_when_away: bool = False) -> Tensor:
    """Hidden states turned towards a direction; their length and type stay.

    With m a state, u the direction and s the strength: |m| unit( unit(m) + s u ). Where m points away from u,
    `more_when_away` takes s (1 + cos(m, -u)) in place of s.

    Args:
        hidden: [B, R, D].
        towards: the direction, whose tensors broadcast over `hidden`.
        strength: s.
        more_when_away: whether states that point away are turned more.
    """
    wide, unit = hidden.float(), towards.unit
    norm = wide.norm(dim=-1, keepdim=True)
    cosine = (wide * unit).sum(-1, keepdim=True) / norm.clamp_min(_TINY)
    step = strength * towards.length
    if more_when_away:
        step = step * (1 - cosine.clamp_max(0))
    # |unit(m) + s u|^2 = 1 + 2 s cos(m, u) + s^2: the sum itself is never normalised, which saves a pass over it.
    scale = (1 + step * (2 * cosine + step)).clamp_min(_TINY).rsqrt()
    return torch.addcmul(wide * scale, unit, norm * step * scale).to(hidden.dtype)
