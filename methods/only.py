"""ONLY: one-layer intervention (ICCV 2025, arXiv 2507.00898).

A contrast without a second branch: beside the token's own state, a second state takes a short cut through the model. It
begins with the attention of the first layer, of which only heads that look at text more evenly than at the picture are
left, and joins the answer in the last layer.

Stations: attention (looked at, not edited) and logits. With A_h the attention of the row that predicts the next token
in the first layer with attention, T its text columns but the first token, V its visual columns:

  A'_h   = A_h without entries above mean + std, over T and over V apart
  rho_h  = entropy of A'_h over T / entropy of A'_h over V;   heads with rho_h below the mean over heads are dropped
  c0     = output projection of the heads' A'_h values
  c      = norm(c0) + residual * h,  h the state that enters the last layer;   c <- c + mlp(norm(c))
  l_c    = head( final norm(c) + last_state * final state )
  d      = sum over the vocabulary of |softmax(l) - softmax(l_c)|
  l'     = l + agreement_strength * l_c                   where d < threshold
           (1 + strength) l - strength * l_c              elsewhere,   kept where l >= max l + ln(plausibility)

Where the values come from: agreement_strength 3, strength 1, plausibility 0.1, residual 0.2 and last_state 0.5 are the
released code's; the last two and the leap over all layers between stand in the code only. threshold is 0.2 in its POPE
and 0.25 in its CHAIR script, both of which sample. The release names the last layer by its number for LLaVA-1.5, its
columns of text and picture too, and sums d over the rows of a batch; here each row decides for itself. Where a layer
has its feed-forward network beside its attention, both have one norm in front; gates behind the attention, and what
else a family does between the heads and the output projection, are left out of the short cut.

Cost: one row of attention in the first layer, one feed-forward network and one row of the output embeddings per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    FeedForward,
    GuardTarget,
    Method,
    ReadOutCall,
    RowSelection,
    cut_implausible,
    feed_forward_of,
    option,
    output_projection,
    plausibility_option,
    register,
)

_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class ShortCut:
    """The modules that the second state goes through, and the layers that they are of."""

    first: int
    last: int
    projection: nn.Module
    feed_forward: FeedForward


@register("only")
@dataclass(frozen=True, kw_only=True)
class ONLY(Method):
    """Move away from, or towards, a state that leaps from the first layer's text heads to the last layer."""

    title = "ONLY"
    paper = (
        "ONLY: One-Layer Intervention Sufficiently Mitigates Hallucinations in Large Vision-Language Models, ICCV "
        "2025, arXiv 2507.00898"
    )
    stations = ("attention", "logits")
    rows = "text"

    strength: float = option(
        1.0,
        help="how far to move away from the short cut's logits where they differ",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha_2 = 1 in the release",
    )
    agreement_strength: float = option(
        3.0,
        help="weight of the short cut's logits where they agree",
        range=(0.0, 100.0),
        neutral=0.0,
        paper="alpha_1 = 3 in the release",
    )
    threshold: float = option(
        0.2,
        help="sum of differences of probabilities below which the two agree",
        range=(0.0, 2.0),
        tried=(0.25,),
        paper="gamma = 0.2 in the released POPE script, 0.25 in the CHAIR script, 0.1 in the parser",
    )
    plausibility: float = plausibility_option("0.1 in the release")
    residual: float = option(
        0.2, help="share of the last layer's input that joins", range=(0.0, 10.0), paper="0.2, in the code only"
    )
    last_state: float = option(
        0.5, help="share of the answer's own state that joins", range=(0.0, 10.0), paper="0.5, in the code only"
    )

    def prepare(self, target: GuardTarget) -> ShortCut:
        """The modules of the short cut.

        Raises:
            ValueError: the model does not have them by a known name, or spreads its heads over processes.
        """
        architecture = target.architecture
        if (target.model.tp_size or 1) > 1:
            raise ValueError("only sends all heads through one output projection; load the model without tp_plan")
        entry, last = architecture.layers[0], architecture.depth - 1
        return ShortCut(
            first=entry.index,
            last=last,
            projection=output_projection(entry.attention, self.name),
            feed_forward=feed_forward_of(architecture.decoder_layers[last], self.name),
        )

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The first layer with attention."""
        return (target.architecture.layers[0].index,)

    def contrasts(self) -> bool:
        """Both strengths 0 switch it off."""
        return self.strength > 0 or (self.agreement_strength > 0 and self.threshold > 0)

    def early_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The last layer, whose entering state joins."""
        return (target.architecture.depth - 1,)

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """Nothing is edited; where the short cut of these rows begins is kept."""
        if not self.contrasts():
            return None
        weights = call.weights()
        keys = weights.shape[-1]
        visual = _longer(call.state.visual.to(weights.device), keys, behind=False)
        real = _longer(call.state.real.to(weights.device), keys, behind=True)
        place = torch.arange(keys, device=weights.device)
        if call.rows is None:
            own = torch.full((weights.shape[0], 1), call.state.offset, device=weights.device)
        else:
            own = call.rows.index.to(weights.device) + call.state.offset
        visible = real[:, None] & (place <= own[..., None])
        first = place == real.to(torch.uint8).argmax(-1, keepdim=True)
        left = text_heads(weights, visual[:, None] & visible, (~visual & ~first)[:, None] & visible, first)
        values = call.value.float().repeat_interleave(call.query.shape[1] // call.value.shape[1], 1)
        heads = left[..., call.first_key :] @ values[:, :, : keys - call.first_key]
        joined = heads.transpose(1, 2).flatten(2).to(call.value.dtype)
        cut: ShortCut = call.prepared
        shared = call.state.memory(self.name, -1)
        shared.begun, shared.rows, shared.count = cut.projection(joined), call.rows, call.query.shape[2]
        shared.cut = cut
        return None

    def read_out(self, call: ReadOutCall) -> Tensor:
        """[B, 1, D] the state behind the short cut."""
        shared = call.memory
        if not hasattr(shared, "begun"):
            return call.final[:, None]
        (entering,) = call.entering.values()
        cut: ShortCut = shared.cut
        begun = _row(shared.begun, shared.rows, shared.count + call.position).to(entering.device, entering.dtype)
        joined = cut.feed_forward.enter(begun[:, None]) + self.residual * entering[:, None]
        behind = call.norm(cut.feed_forward(joined))
        return behind.to(call.final.device) + self.last_state * call.final[:, None]

    def combine_read_out(self, call: ReadOutCall, final: Tensor, extra: Tensor) -> Tensor:
        """The contrast, in rows with a picture."""
        return torch.where(call.has_image[:, None], self.contrast(final, extra[0]), final)

    def contrast(self, final: Tensor, side: Tensor) -> Tensor:
        """[B, V] logits of the model's [B, V] and the short cut's [B, V]."""
        difference = (final.softmax(-1) - side.softmax(-1)).abs().sum(-1, keepdim=True)
        agreed = final + self.agreement_strength * side
        # Tokens that a model rules out itself have the lowest number there is, which must not become minus infinity.
        mixed = torch.where(difference < self.threshold, agreed, final + self.strength * (final - side))
        mixed = mixed.clamp_min(torch.finfo(mixed.dtype).min)
        return cut_implausible(mixed, final, self.plausibility)


def text_heads(weights: Tensor, visual: Tensor, text: Tensor, first: Tensor) -> Tensor:
    """[B, H, R, K] the attention that the short cut begins with: entries that stand out and image heads are 0.

    Args:
        weights: [B, H, R, K] attention of R rows.
        visual: [B, R, K] bool, visual columns that a row sees.
        text: [B, R, K] bool, its text columns, without the first token.
        first: [B, K] bool, the first token, which is left alone.
    """
    parts = [_without_outstanding(weights, columns[:, None]) for columns in (text, visual)]
    ratio = _entropy(parts[0]) / _entropy(parts[1]).clamp_min(_TINY)
    kept = ratio >= ratio.mean(1, keepdim=True)
    return (weights * first[:, None, None] + parts[0] + parts[1]) * kept[..., None]


def _without_outstanding(weights: Tensor, columns: Tensor) -> Tensor:
    """The weights of some columns, 0 where they exceed mean + std of the sample; no others."""
    number = columns.sum(-1, keepdim=True)
    mean = (weights * columns).sum(-1, keepdim=True) / number.clamp_min(1)
    spread = (((weights - mean) * columns).square().sum(-1, keepdim=True) / (number - 1).clamp_min(1)).sqrt()
    return weights * (columns & (weights <= mean + spread))


def _entropy(weights: Tensor) -> Tensor:
    """[B, H, R] of weights [B, H, R, K] that are scaled to sum to 1."""
    share = weights / weights.sum(-1, keepdim=True).clamp_min(_TINY)
    return -(share * (share + 1e-6).log()).sum(-1)


def _longer(mask: Tensor, keys: int, *, behind: bool) -> Tensor:
    """[B, K] of a mask [B, P] of the prompt, with `behind` for the keys behind it."""
    return torch.nn.functional.pad(mask, (0, max(0, keys - mask.shape[1])), value=behind)[:, :keys]


def _row(states: Tensor, rows: RowSelection | None, place: int) -> Tensor:
    """[B, D] of [B, R, D] the row at one place of the pass; 0 where it is not among them."""
    if rows is None:
        return states[:, 0]
    hit = (rows.index == place) & rows.valid
    return (states * hit.to(states.device)[..., None]).sum(1).to(states.dtype)
