"""M3ID: multi-modal mutual-information decoding (CVPR 2024, arXiv 2403.14003).

The longer an answer gets, the more the language prior takes over from the picture. M3ID moves away from the logits of
the prompt without its picture, the more so the more tokens have been generated.

Station: logits. At generated token t = 0, 1, ...

  l' = l + ((1 - g_t) / g_t) (l - l_text),   g_t = exp(-forgetting * t),   kept where l >= max l + ln(plausibility)

with log-probabilities l, which is the common contrast formula with strength (1 - g_t) / g_t = exp(forgetting * t) - 1.
The formula and its constants (forgetting 0.02, plausibility 0.1) are those of the public re-implementations in AvisC
and ONLY; the authors released no code. The weight grows without bound (1.7 at token 50, 53 at token 200), hence
`max_strength`, which the re-implementations do not have and the default leaves out of reach of short answers.

The text-only prompt is the given one without image tokens and their markers; it is read apart and costs little.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from vlm_guard.method import Branch, ContrastCall, Method, contrast_logits, option, register
from vlm_guard.method.branch_prompt import image_markers


@register("m3id")
@dataclass(frozen=True, kw_only=True)
class M3ID(Method):
    """Move away from the text-only logits, more with every generated token."""

    title = "M3ID"
    paper = "Multi-Modal Hallucination Control by Visual Information Grounding, CVPR 2024, arXiv 2403.14003"
    stations = ("logits",)
    needs = ("second branch",)
    counts_steps = True
    compiles = True

    forgetting: float = option(
        0.02,
        help="rate at which the picture is taken to be forgotten, per generated token",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="lambda = 0.02 in the public re-implementations",
    )
    plausibility: float = option(
        0.1,
        help="tokens less than this times as probable as the best are ruled out",
        range=(0.0, 1.0),
        neutral=0.0,
        tried=(0.5, 0.7),
        paper="0.1 in the public re-implementations",
    )
    max_strength: float = option(
        100.0, help="largest strength that a long answer can reach", range=(0.0, 1e6), paper="none published"
    )

    def contrasts(self) -> bool:
        """A rate of 0 switches the second branch off."""
        return self.forgetting > 0

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The prompt without its picture."""
        prompt = call.prompt.without_images(image_markers(call.model, call.processor))
        return Branch(prompt=prompt, images="none", active=call.prompt.has_image)

    def combine_logits(self, positive: Tensor, negative: Tensor, step: int) -> Tensor:
        """The contrast with the strength of generated token `step`."""
        return contrast_logits(positive, negative, self.strength_at(step), self.plausibility)

    def strength_at(self, step: int) -> float:
        """(1 - g) / g for generated token `step`, at most `max_strength`."""
        exponent = self.forgetting * step
        return self.max_strength if exponent > 30 else min(math.expm1(exponent), self.max_strength)
