"""M3ID: multi-modal mutual-information decoding (CVPR 2024, arXiv 2403.14003).

The longer an answer gets, the more the language prior takes over from the picture. M3ID moves away from the logits of
the prompt without its picture, the more so the more tokens have been generated.

Station: logits. At generated token t = start, start + 1, ...

  l' = l + ((1 - g_t) / g_t) (l - l_text),   g_t = exp(-forgetting * t),   kept where l >= max l + ln(plausibility)

with log-probabilities l, which is the common contrast formula with strength (1 - g_t) / g_t = exp(forgetting * t) - 1.

The authors released no code. The paper counts t from 1, cuts nothing, and contrasts only where the model is unsure:
where its largest probability is below 0.3 (the option `gate`, which every method has). The public re-implementations in
AvisC and ONLY count from 0 (so that the first token is not contrasted), contrast always, and cut at 0.1. The default is
the re-implementations', because every figure that other papers print for M3ID comes from one of them;
`variant="published"` is the paper's. The rate 0.02 is theirs too, and none is known from the paper. The weight grows
without bound (1.7 at token 50, 53 at token 200), hence `max_strength`, which neither has and the default leaves out of
reach of short answers.

The text-only prompt is the given one without image tokens and their markers; it is read apart and costs little.
"""

import math
from dataclasses import dataclass

from vlm_guard.method import Branch, ContrastCall, ContrastMethod, option, plausibility_option, register, variant_option


@register("m3id")
@dataclass(frozen=True, kw_only=True)
class M3ID(ContrastMethod):
    """Move away from the text-only logits, more with every generated token."""

    title = "M3ID"
    paper = "Multi-Modal Hallucination Control by Visual Information Grounding, CVPR 2024, arXiv 2403.14003"
    counts_steps = True

    forgetting: float = option(
        0.02,
        help="rate at which the picture is taken to be forgotten, per generated token",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="lambda = 0.02 in the public re-implementations",
    )
    plausibility: float = plausibility_option("0.1 in the public re-implementations, none in the paper", published=0.0)
    gate: str = option(
        "",
        help="act only at unsure steps: entropy>0.5 (nats), max_p<0.7 or rival>=0.1; empty acts at all",
        paper="max_p<0.3 in the paper (alpha), none in the public re-implementations",
        published="max_p<0.3",
    )
    start: int = option(
        0,
        help="t of the first generated token; with 0 it is not contrasted",
        range=(0, 1),
        paper="1 in the paper, 0 in the public re-implementations",
        published=1,
    )
    max_strength: float = option(
        100.0,
        help="largest strength that a long answer can reach",
        range=(0.0, 1e6),
        paper="none published",
        published=1e6,
    )
    variant: str = variant_option(
        "published gates, counts from 1 and cuts nothing, as the paper; default does none of it"
    )

    def contrasts(self) -> bool:
        """A rate of 0 switches the second branch off; the first token may have strength 0 all the same."""
        return self.forgetting > 0

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The prompt without its picture."""
        return call.text_branch()

    def contrast_strength(self, step: int) -> float:
        """(1 - g) / g for generated token `step` (counted from 0), at most `max_strength`."""
        exponent = self.forgetting * (step + self.start)
        return self.max_strength if exponent > 30 else min(math.expm1(exponent), self.max_strength)
