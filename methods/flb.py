"""FLB: first logit boosting (CVPR 2026, arXiv 2604.00455).

When an answer begins the picture is freshest; the longer the answer, the more it goes on from its own words. FLB keeps
the logits that the model had for the first token and adds them, more and more, to those of the later ones.

Station: logits; no second branch, no second pass. With l_t the model's logits for generated token t, counted from 0,

  l'_t = l_t + strength * (1 - exp(-rate * t)) * l_0,   kept where l_t >= max l_t + ln(plausibility)

Where the values come from: strength 0.3, rate 0.05 and the cut 0.1 are the released code's. The factor is 0 at the
first token, which is cut but not changed, 0.0146 at t = 1, 0.118 at t = 10 and 0.275 at t = 50.

In the release FLB can be added behind VCD, whose result it then boosts; here one method combines the logits of a step.
Rows without a picture are left alone. The cost is one sum over the vocabulary per token. A pass of several tokens
(`model(...)` with labels) is edited token by token, with the answer's first logits of the same pass.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from vlm_guard.method import Method, cut_implausible, option, plausibility_option, register


@register("flb")
@dataclass(frozen=True, kw_only=True)
class FLB(Method):
    """Add the logits of the answer's first token to later ones, more with every token."""

    title = "FLB"
    paper = (
        "First Logit Boosting: Visual Grounding Method to Mitigate Object Hallucination in Large Vision-Language "
        "Models, CVPR 2026, arXiv 2604.00455"
    )
    stations = ("logits",)
    counts_steps = True
    compiles = True

    strength: float = option(
        0.3,
        help="largest share of the first token's logits that is added; 0 switches FLB off",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="gamma = 0.3 in the released code",
    )
    rate: float = option(
        0.05,
        help="how fast the share grows with the length of the answer, per generated token",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="lambda = 0.05 in the released code",
    )
    plausibility: float = plausibility_option("beta = 0.1 in the released code")

    def contrasts(self) -> bool:
        """Strength or rate 0 switches it off."""
        return self.strength > 0 and self.rate > 0

    def edit_logits(self, logits: Tensor, first: Tensor, step: int) -> Tensor:
        """The logits with those of the first token, on plausible tokens."""
        share = -self.strength * math.expm1(-self.rate * step)
        return cut_implausible(logits + share * first, logits, self.plausibility)
