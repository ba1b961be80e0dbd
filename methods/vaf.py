"""VAF: visual amplification fusion (ClearSight, CVPR 2025, arXiv 2503.13107).

Text takes up what the picture shows in the middle layers, and attends too little to it there. VAF amplifies the scores
of visual tokens in these layers and weakens those of the text in front of the picture, the system message among it,
in the prompt's text rows as well as in those of the answer, with no second pass.

Station: attention scores, in the rows behind the picture and of every generated token, all heads, `layers`. With s the
scores before the mask,

  form "magnitude"   s'_ij = s_ij + (enhance - 1) |s_ij| for visual keys j,  s_ij + (suppress - 1) |s_ij| for text keys
  form "signed"      s'_ij = enhance * s_ij              for visual keys j,  suppress * s_ij              for text keys

where text keys are those in front of the first picture; text behind it and generated tokens stay as they are.

Where the values come from: enhance 1.15 and suppress 0.95 are the released README's (the argument parser's own
defaults, 1 and 1, switch the method off), layers 9 to 14 of 32 (here as a share of the depth) are the code's. The code
multiplies scores, "signed", and what is published was measured so (`variant="published"`): a visual token whose score
is negative then gets less attention instead of more, against the paper's intention, and a text token with a negative
score gets more. The default amplifies by size, so that every visual token gains and all text in front loses.

The code counts on 35 system and 576 visual tokens and takes a pass of few rows for a decode step; here the rows are
found by where the picture is, in every row of a batch. A row's edit is a property of its keys, so it is made once for
each prompt and layer, and steps can be compiled. The scores are edited before the softmax inside the attention
operation: no map is made, and rows of the picture and of the text in front of it are untouched.
"""

from dataclasses import dataclass

import torch

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import AttentionCall, KeyEditMethod, option, register, variant_option


@register("vaf")
@dataclass(frozen=True, kw_only=True)
class VAF(KeyEditMethod):
    """Amplify the scores of visual tokens and weaken those of the text in front, in middle layers."""

    title = "VAF"
    paper = (
        "ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in Multimodal Large Language "
        "Models, CVPR 2025, arXiv 2503.13107"
    )
    rows = "text"

    enhance: float = option(
        1.15,
        help="factor of the size of visual tokens' scores",
        range=(1.0, 2.0),
        neutral=1.0,
        paper="enh_para = 1.15 in the README, 1 in the argument parser",
    )
    suppress: float = option(
        0.95,
        help="factor of the size of the scores of the text in front of the picture",
        range=(0.0, 1.0),
        neutral=1.0,
        paper="sup_para = 0.95 in the README, 1 in the argument parser",
    )
    form: str = option(
        "magnitude",
        help="add a share of the score's size, or multiply the score with its sign",
        choices=("magnitude", "signed"),
        paper="signed in the released code, which weakens visual tokens with negative scores",
        published="signed",
    )
    layers: str = option("28%-47%", help="decoder layers to edit", paper="9 to 14 of 32")
    variant: str = variant_option("published multiplies scores with their sign, as the code; default by their size")

    def edit_keys(self, call: AttentionCall) -> AttentionEdit | None:
        """The factors of visual keys and of the text in front of them."""
        if self.enhance == 1 and self.suppress == 1:
            return None
        visual = call.state.visual.to(call.query.device)
        in_front = (visual.cumsum(-1) == 0) & visual.any(-1, keepdim=True)
        factor = visual * (self.enhance - 1) + in_front * (self.suppress - 1)
        factor = factor.to(torch.float32)[:, None, None]
        return AttentionEdit(slope=factor) if self.form == "signed" else AttentionEdit(gain=factor)
