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
from, and say so: strength 1 and plausibility 0.1 as in VCD, degree 1, all heads of the middle layers (30 to 65 % of
the depth, where LLaVA's heads look at the picture most). `heads_by_visual_share` finds heads on prompts of your own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.families.layers import select_layers_of
from vlm_guard.guard import wrap
from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    Branch,
    ContrastCall,
    GuardTarget,
    Method,
    RowScope,
    contrast_logits,
    option,
    register,
)
from vlm_guard.method.split_heads import own_heads

# exp(-10000) is exactly 0 in every floating type, and unlike minus infinity it never makes a NaN.
REMOVED = -1e4


@register("softpag")
@dataclass(frozen=True, kw_only=True)
class SoftPAG(Method):
    """Move away from the logits of a branch whose attention is perturbed in chosen heads."""

    title = "SoftPAG"
    paper = (
        "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, ECCV 2024, arXiv 2403.17377; "
        "Fine-Grained Perturbation Guidance via Attention Head Selection, arXiv 2506.10978"
    )
    stations = ("attention", "logits")
    needs = ("second branch",)
    edited_branch = "negative"
    steady = True
    compiles = True

    strength: float = option(
        1.0,
        help="how far to move away from the perturbed branch's logits",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="w, no published value for language models",
    )
    plausibility: float = option(
        0.1,
        help="tokens less than this times as probable as the best are ruled out",
        range=(0.0, 1.0),
        neutral=0.0,
        tried=(0.5, 0.7),
        paper="0.1 as in VCD",
    )
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
    heads: str = option("all", help="heads to perturb: 'all' of `layers`, or layer.head pairs such as '12.3,14.5'")

    @property
    def rows(self) -> RowScope:  # type: ignore[override]
        """The rows of the branch that are perturbed."""
        return "text" if self.scope == "text" else "answer"

    def prepare(self, target: GuardTarget) -> dict[int, Tensor]:
        """[H] bool of each layer with a perturbed head.

        Raises:
            ValueError: a head that the model does not have, or pairs that cannot be read.
        """
        return chosen_heads(self.heads, self.layers, target)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers with a perturbed head."""
        return tuple(sorted(chosen_heads(self.heads, self.layers, target)))

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The perturbation, in the rows of the branch."""
        if self.degree == 0 or self.strength == 0:
            return None
        device = call.query.device
        heads = own_heads(call.prepared[call.layer], 0, call.query.shape[1], call.guard.target).to(device)
        if self.perturbation == "identity":
            has_image = call.state.visual.to(device).any(-1)
            return AttentionEdit(self_mix=(has_image[:, None] & heads).float() * self.degree)
        known = getattr(call.memory, "bias", None)
        if known is None or known[0] is not call.state.visual:
            value = REMOVED if self.degree == 1 else math.log1p(-self.degree)
            touched = call.state.visual.to(device)[:, None, None] & heads[:, None, None]
            call.memory.bias = known = (call.state.visual, touched.float() * value)
        return AttentionEdit(bias=known[1][..., call.first_key :])

    def contrasts(self) -> bool:
        """Strength or degree 0 switches the second branch off."""
        return self.strength > 0 and self.degree > 0

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same prompt and picture; what differs is the attention of its rows."""
        return Branch(prompt=call.prompt.same(), images="same", active=call.prompt.has_image)

    def combine_logits(self, positive: Tensor, negative: Tensor, step: int) -> Tensor:
        """(1 + strength) positive - strength perturbed, on plausible tokens."""
        return contrast_logits(positive, negative, self.strength, self.plausibility)


def chosen_heads(heads: str, layers: str, target: GuardTarget) -> dict[int, Tensor]:
    """[H] bool of each layer with a chosen head; see the options `heads` and `layers`."""
    count, depth = target.architecture.heads, target.architecture.depth
    if heads.strip() == "all":
        return {layer: torch.ones(count, dtype=torch.bool) for layer in select_layers_of(layers, target)}
    found: dict[int, Tensor] = {}
    for pair in heads.replace(" ", "").split(","):
        layer, dot, head = pair.partition(".")
        if not (dot and layer.isdigit() and head.isdigit()):
            raise ValueError(f"softpag: heads is {heads!r}; allowed: 'all' or layer.head pairs such as '12.3,14.5'")
        if int(layer) >= depth or int(head) >= count:
            raise ValueError(f"softpag: head {pair} does not exist; the model has {depth} layers of {count} heads")
        found.setdefault(int(layer), torch.zeros(count, dtype=torch.bool))[int(head)] = True
    return found


def heads_by_visual_share(model: Any, inputs: Mapping[str, Any], count: int, layers: str = "all") -> str:
    """The `count` heads that put most attention on visual tokens when they predict the first token.

    Args:
        model: an unguarded model.
        inputs: prompts with images, as for `generate`; the shares are averaged over its rows.
        count: how many heads.
        layers: the layers to choose from.

    Returns:
        Pairs for the option `heads`.
    """
    with wrap(model, None, "none") as guard, guard.trace(layers) as trace:
        guard.generate(**inputs, max_new_tokens=1, do_sample=False)
        visual = guard.state.visual
    shares = trace.visual_share(visual)[0].mean(1)
    best = shares.flatten().topk(min(count, shares.numel())).indices.tolist()
    pairs = [(trace.layers[index // shares.shape[1]], index % shares.shape[1]) for index in best]
    return ",".join(f"{layer}.{head}" for layer, head in sorted(pairs))
