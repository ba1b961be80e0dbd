"""PAI: paying more attention to image (ECCV 2024, arXiv 2407.21771).

Two parts, each of which can be switched off. The scores of visual tokens are raised in proportion to their size, so
that the generated token looks more at the picture; and the answer moves away from what the language model would say
without the picture.

Stations: attention and logits.
  attention  s'_ij = s_ij + gain |s_ij| for visual keys j, in the row of every generated token (the last prompt row
             and each decode row), all heads, `layers`
  logits     l' = guidance l - (guidance - 1) l_text, kept where l >= max l + ln(plausibility), with l_text from the
             prompt without image tokens, read without the attention edit

which is the common contrast formula with strength guidance - 1. Defaults: gain 0.2 and layers 2 to the last from the
released command line (the paper reports 0.5 for LLaVA-1.5), guidance 1.1 from the release's README (its argument
parser says 2), the cut 0.1 is fixed in the release. Above a gain of 1 negative scores would change sign.

In the release the first token is predicted without the gain whenever guidance is on, because a flag is set late; here
the gain covers it. The release also loses the gain altogether for guidance 1, pads wrongly in batches and does not
move its second cache with the beams; none of that is kept.
"""

from dataclasses import dataclass

import torch

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    Branch,
    ContrastCall,
    ContrastMethod,
    GuardTarget,
    KeyEditMethod,
    option,
    own_heads,
    plausibility_option,
    register,
    select_heads_of,
)


@register("pai")
@dataclass(frozen=True, kw_only=True)
class PAI(ContrastMethod, KeyEditMethod):
    """Raise the scores of visual tokens and move away from the text-only logits."""

    title = "PAI"
    paper = "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs, ECCV 2024, arXiv 2407.21771"  # noqa: E501
    stations = ("attention", "logits")
    rows = "answer"

    gain: float = option(
        0.2,
        help="share of its size by which the score of a visual token is raised; 0 switches the attention part off",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="alpha = 0.2 in the released command line, 0.5 for LLaVA-1.5 in the paper",
    )
    guidance: float = option(
        1.1,
        help="weight of the logits with the picture against those without; 1 switches the logits part off",
        range=(1.0, 10.0),
        neutral=1.0,
        paper="gamma = 1.1 in the README, 2 in the argument parser",
    )
    plausibility: float = plausibility_option("0.1, fixed in the released code")
    layers: str = option("2-", help="decoder layers whose attention is edited", paper="2 to 31 of 32")
    heads: str = option(
        "all",
        help="heads whose scores are raised: all, items such as 2:0,7:1-3, or retrieval, image, dormant, distant",
        paper="all",
    )

    def prepare(self, target: GuardTarget) -> dict[int, torch.Tensor] | None:
        """The chosen heads by layer, or None for all of them.

        Raises:
            ValueError: `heads` names heads that the model does not have, or a list that no profile has.
        """
        return select_heads_of(self.heads, target)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers of `layers` that have a chosen head."""
        layers, chosen = super().active_layers(target), self.prepare(target)
        return layers if chosen is None else tuple(layer for layer in layers if layer in chosen)

    def edit_keys(self, call: AttentionCall) -> AttentionEdit | None:
        """The gain on visual keys, in the chosen heads."""
        if self.gain == 0:
            return None
        gain = call.state.visual.to(call.query.device, torch.float32)[:, None, None] * self.gain
        if call.prepared is not None:
            own = own_heads(call.prepared[call.layer], 0, call.query.shape[1], call.target)
            gain = gain * own.to(gain)[None, :, None, None]
        return AttentionEdit(gain=gain)

    @property
    def cross_attention(self) -> str:
        """The gain alone is refused: it would sharpen attention among visual keys, but could not move any to them."""
        return "" if self.gain == 0 else "more attention on visual keys is impossible where all keys are; set gain=0"

    def contrast_strength(self, step: int) -> float:
        """Guidance 1 switches the second branch off."""
        return self.guidance - 1

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The prompt without its picture."""
        return call.text_branch()
