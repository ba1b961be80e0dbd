"""HGAI: heads-guided attention intervention (Devils in Middle Layers, CVPR 2025, arXiv 2411.16724).

In the middle layers the heads of a model look at the picture in different places, and a made-up object comes with
attention that is spread over places they do not agree on. The intervention adds to the score of every visual token how
strongly the heads respond to it on average, the same amount in all heads, so that they look where they agree to look.

Station: attention scores, in the row of every generated token (the last prompt row and each decode row), `layers`.
With s the scores of that row and H query heads,

  s'_hj = s_hj + strength * (1 / H) * sum over h' of |s_h'j|   for visual keys j

Where the values come from: strength 0.5 and layers 5 to 17 of 32 (here as a share of the depth) are the released code's
for LLaVA-1.5. Unlike PAI, which raises each head's score by its own size, all heads get the same bias; a large negative
score also raises it, as published.

The scores of the row are computed once for the mean and once more with the bias: two products per edited layer and
token, and no map. Steps are not compiled, since the bias depends on the query of the step. Where scores are capped, the
capped ones count; keys outside of a layer's window get nothing. With a contrast the positive branch alone is edited.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import AttentionCall, GenerationState, Method, all_heads, option, register


@register("hgai")
@dataclass(frozen=True, kw_only=True)
class HGAI(Method):
    """Add to the scores of visual tokens what all heads of the layer respond with on average."""

    title = "HGAI"
    paper = (
        "Devils in Middle Layers of Large Vision-Language Models: Interpreting, Detecting and Mitigating Object "
        "Hallucinations via Attention Lens, CVPR 2025, arXiv 2411.16724"
    )
    stations = ("attention",)
    rows = "answer"

    strength: float = option(
        0.5,
        help="how much of the heads' mean |score| is added to the score of a visual token",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha = 0.5 in the released code",
    )
    layers: str = option("16%-56%", help="decoder layers to edit", paper="5 to 17 of 32 for LLaVA-1.5-7B")

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The bias [B, 1, R, P] of the asked rows."""
        if self.strength == 0:
            return None
        size = call.scores(wide=False).abs_()
        visual = call.visual_keys()[:, None, None] & size.isfinite().all(1, keepdim=True)
        # Where heads are spread over processes each has as many, so that the mean of their means is the mean.
        mean = all_heads(size.mean(1, keepdim=True), 1, call.target).mean(1, keepdim=True)
        bias = torch.where(visual, mean * self.strength, 0.0)
        return AttentionEdit(bias=call.over_all_keys(bias))

    def join_memory(self, kept: Sequence[SimpleNamespace], state: GenerationState) -> SimpleNamespace:
        """Nothing: all it uses is in the step."""
        return SimpleNamespace()
