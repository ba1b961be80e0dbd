"""The base class of methods that move away from the logits of a second branch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlm_guard.method.base import Method, Station, option
from vlm_guard.method.contrasting import contrast_logits


def plausibility_option(paper: str, **details: Any) -> Any:
    """The option `plausibility`: how probable a token must be under the positive branch to stay possible.

    Args:
        paper: where the default of 0.1 comes from.
        **details: of `option`, such as `published`.
    """
    return option(
        0.1,
        help="tokens less than this times as probable as the best are ruled out",
        range=(0.0, 1.0),
        neutral=0.0,
        tried=(0.5, 0.7),
        paper=paper,
        **details,
    )


@dataclass(frozen=True, kw_only=True)
class ContrastMethod(Method):
    """Base of methods with a second branch; a method has a strength, a plausibility, and `contrast_branch`.

    z' = (1 + strength) z_positive - strength z_negative, on the tokens that are plausible under the positive branch.
    A subclass declares the options `strength` and `plausibility` (`plausibility_option`), or overrides
    `contrast_strength` where the strength is something else or grows with the answer.
    """

    stations: ClassVar[tuple[Station, ...]] = ("logits",)
    needs: ClassVar[tuple[str, ...]] = ("second branch",)
    compiles = True

    def contrast_strength(self, step: int) -> float:
        """The strength at generated token `step`, counted from 0; by default the option `strength`."""
        return getattr(self, "strength")  # noqa: B009 - the option of a subclass

    def contrasts(self) -> bool:
        """A strength of 0 switches the second branch off."""
        return self.contrast_strength(0) > 0

    def combine_logits(self, positive: Tensor, negative: Tensor, step: int) -> Tensor:
        """[B, V] (1 + strength) positive - strength negative, on plausible tokens."""
        return contrast_logits(positive, negative, self.contrast_strength(step), getattr(self, "plausibility"))  # noqa: B009
