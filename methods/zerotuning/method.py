"""ZeroTuning: one factor on the attention to the first token (arXiv 2505.11739, ICLR 2026).

The first token (BOS) draws much attention and carries nothing. Scaling what it draws, and renormalising each row,
moves attention between it and everything else at once. Per query row i and head, with a the softmax of the model:

    a'_i0 = g a_i0 / D_i,    a'_ij = a_ij / D_i  (j > 0),    D_i = 1 + (g - 1) a_i0

which is the same as adding ln g to the score of key 0. g < 1 gives the first token's attention to the rest of the
prompt, visual tokens among it; g > 1 flattens the others. g = 1 is the identity.

Station: attention scores of every row of the prompt and of every generated token, in chosen layers and heads. The
bias is one constant per head for one key, so no score is recomputed: it rides along as one more channel of queries
and keys through the attention the model had before.

Where the values come from: the formula and its use on all rows, prompt and answer, are the released code's. The
paper tunes g per task on labelled data, or without labels by the smallest mean entropy of the output; g > 1 helped
classification and g < 1 often question answering (secondary sources). No value was published for a vision-language
model, so there is no honest default: `factor` is taken from the model's profile, where `vlm-guard calibrate` puts
the unsupervised choice, or must be given. The paper tunes heads of the dominant type only, found with labels;
`heads` accepts such a list, and is empty (all heads) by default. Token 0 is the first token of each row after its
padding; that a prompt begins with BOS is the model's affair.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit, BiasFactors
from vlm_guard.method import (
    AttentionCall,
    Fact,
    GuardTarget,
    KeyEditMethod,
    MeasureCall,
    option,
    own_heads,
    register,
    select_heads_of,
)
from vlm_guard.methods.zerotuning.output_entropy import calibrate_zerotuning


@dataclass(frozen=True, eq=False)
class FirstTokenBias:
    """What is added to the score of the first token, and in which heads ([H] bool by layer, None for all)."""

    value: float
    heads: dict[int, Tensor] | None


@register("zerotuning")
@dataclass(frozen=True, kw_only=True)
class ZeroTuning(KeyEditMethod):
    """Scale the attention that every row pays to the first token."""

    title = "ZeroTuning"
    paper = (
        "ZeroTuning: Unlocking the Initial Token's Power to Enhance Large Language Models Without Training, "
        "ICLR 2026, arXiv 2505.11739"
    )
    measurement = ("zerotuning", "strength of ZeroTuning")
    needs = ("calibration",)
    rows = "all"
    cross_attention = "what it takes from the first token would go to text, as self-attention has no visual keys"

    factor: float | None = option(
        None,
        help="factor of the attention to the first token (1 changes nothing); none takes the model's profile",
        range=(0.01, 100.0),
        neutral=1.0,
        paper="gamma; tuned per task in the paper, by labels or by the output's entropy",
    )
    heads: str = option(
        "",
        help="heads to scale, as 'layer:head' or 'layer:first-last' items; empty scales every head",
        paper="the paper selects heads of the dominant type on labelled data",
    )
    layers: str = option("all", help="decoder layers to edit", paper="all; layers 1-21 of 32 gain most")

    @classmethod
    def measure(cls, call: MeasureCall) -> dict[str, Fact]:
        """The factor that makes the first answer token most certain."""
        return calibrate_zerotuning(call.model, call.questions, call.guarded, progress=call.progress)

    def prepare(self, target: GuardTarget) -> FirstTokenBias:
        """The bias ln g from the option, or from the model's profile.

        Raises:
            ValueError: neither says how strong it should be, or `heads` names heads the model does not have.
        """
        factor = self.factor
        if factor is None and target.profile is not None:
            factor = target.profile.value("zerotuning_factor")
        if factor is None:
            raise ValueError(
                f"zerotuning needs its factor for this {target.architecture.model_type} model, and no profile has "
                "it. Run 'vlm-guard calibrate MODEL' once, or pass factor=0.6 (below 1 takes attention from BOS)"
            )
        heads = select_heads_of(self.heads, target)
        return FirstTokenBias(math.log(factor), heads)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers of `layers` that have a chosen head."""
        layers = super().active_layers(target)
        chosen = select_heads_of(self.heads, target)
        return layers if chosen is None else tuple(layer for layer in layers if layer in chosen)

    def edit_keys(self, call: AttentionCall) -> AttentionEdit | None:
        """The bias ln g on the first token's key."""
        return None if call.prepared.value == 0 else AttentionEdit.constant_bias(self._factors(call))

    def _factors(self, call: AttentionCall) -> BiasFactors:
        """Zero but for the first real token of each row that has an image."""
        bias: FirstTokenBias = call.prepared
        device = call.query.device
        first = call.state.real.to(torch.uint8).argmax(-1).to(device)
        over_keys = torch.nn.functional.one_hot(first).to(torch.float32) * bias.value
        over_keys = over_keys * call.state.visual.any(-1, keepdim=True).to(device)
        gate = None
        if bias.heads is not None:
            own = own_heads(bias.heads[call.layer], 0, call.query.shape[1], call.guard.target)
            gate = own.to(device=device, dtype=torch.float32)[None]
        return BiasFactors(over_keys=over_keys, head_gate=gate)
