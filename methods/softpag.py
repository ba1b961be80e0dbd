"""SoftPAG: perturbed-attention contrast (PAG, ECCV 2024, arXiv 2403.17377; SoftPAG, arXiv 2506.10978), ported.

Perturbed-attention guidance takes a diffusion model away from what it does with its self-attention broken; SoftPAG
breaks chosen heads, by a chosen degree. The port to vision-language models is this project's: the branch reads the
same prompt and picture with the attention of chosen heads perturbed, and the answer moves away from its logits.

Stations: attention (of the branch's rows only) and logits. For the chosen heads and rows i, with weights a_ij:

  "visual"    a'_ij = a_ij (1 - degree) / norm for visual keys j, a_ij / norm for the others: the head sees less, or
              at degree 1 nothing, of the picture (close to MaskCD, arXiv 2510.02790)
  "identity"  o_i = (1 - degree) sum_j a_ij v_j + degree v_i: the published perturbation
  logits      z' = (1 + strength) z - strength z_perturbed, kept where z >= max z + ln(plausibility)

PAG's s equals 1 + strength. The papers tune on image generation (s 3 to 5), so the defaults here are guesses to start
from, and say so: strength 1 and plausibility 0.1 as in VCD, degree 1, all heads of the middle layers (30 to 65 % of the
depth, where LLaVA's heads look at the picture most). `heads_by_visual_share` of `vlm_guard.calibration.visual_heads`
finds heads on prompts of your own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    Branch,
    ContrastCall,
    ContrastMethod,
    GuardTarget,
    KeyEditMethod,
    RowScope,
    option,
    own_heads,
    plausibility_option,
    register,
    select_heads_of,
    select_layers_of,
)

# exp(-10000) is exactly 0 in every floating type, and unlike minus infinity it never makes a NaN.
REMOVED = -1e4


@register("softpag")
@dataclass(frozen=True, kw_only=True)
class SoftPAG(ContrastMethod, KeyEditMethod):
    """Move away from the logits of a branch whose attention is perturbed in chosen heads."""

    title = "SoftPAG"
    paper = (
        "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, ECCV 2024, arXiv 2403.17377; "
        "Fine-Grained Perturbation Guidance via Attention Head Selection, arXiv 2506.10978"
    )
    stations = ("attention", "logits")
    edited_branch = "negative"

    strength: float = option(
        1.0,
        help="how far to move away from the perturbed branch's logits",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="w, no published value for language models",
    )
    plausibility: float = plausibility_option("0.1 as in VCD")
    degree: float = option(
        1.0,
        help="how far the attention of the chosen heads is perturbed",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="u; 1 is PAG",
    )
    perturbation: str = option(
        "visual",
        help="take the picture from the heads, or replace attention by identity",
        choices=("visual", "identity"),
    )
    scope: str = option(
        "text",
        help="perturbed rows: text after the image and all generated tokens, or only those that predict the answer",
        choices=("text", "answer"),
    )
    layers: str = option("30%-65%", help="layers whose heads are perturbed, when `heads` is 'all'")
    heads: str = option("all", help="heads to perturb: 'all' of `layers`, or 'layer:head' items such as '12:3,14:5-7'")

    @property
    def rows(self) -> RowScope:
        """The rows of the branch that are perturbed."""
        return "text" if self.scope == "text" else "answer"

    def prepare(self, target: GuardTarget) -> dict[int, Tensor]:
        """[H] bool of each layer with a perturbed head.

        Raises:
            ValueError: a head that the model does not have, or text that cannot be read.
        """
        return chosen_heads(self.heads, self.layers, target)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers with a perturbed head."""
        return tuple(sorted(chosen_heads(self.heads, self.layers, target)))

    def edit_keys(self, call: AttentionCall) -> AttentionEdit | None:
        """The perturbation, in the rows of the branch."""
        if self.degree == 0 or self.strength == 0:
            return None
        device = call.query.device
        heads = own_heads(call.prepared[call.layer], 0, call.query.shape[1], call.guard.target).to(device)
        visual = call.state.visual.to(device)
        if self.perturbation == "identity":
            return AttentionEdit(self_mix=(visual.any(-1)[:, None] & heads).float() * self.degree)
        value = REMOVED if self.degree == 1 else math.log1p(-self.degree)
        return AttentionEdit(bias=(visual[:, None, None] & heads[:, None, None]).float() * value)

    def contrasts(self) -> bool:
        """Strength or degree 0 switches the second branch off."""
        return self.strength > 0 and self.degree > 0

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same prompt and picture; what differs is the attention of its rows."""
        return Branch(prompt=call.prompt.same(), images="same", active=call.prompt.has_image)


def chosen_heads(heads: str, layers: str, target: GuardTarget) -> dict[int, Tensor]:
    """[H] bool of each layer with a chosen head; see the options `heads` and `layers`."""
    chosen = select_heads_of(heads, target)
    if chosen is None:
        return {
            layer: torch.ones(target.architecture.heads, dtype=torch.bool) for layer in select_layers_of(layers, target)
        }
    return chosen
