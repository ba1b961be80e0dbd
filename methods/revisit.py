"""ReVisiT: the picture's own words as a reference (Revisit What You See, arXiv 2506.09522).

Read out like text, the hidden state of a visual token says what the model takes its patch for. At each step, ReVisiT
finds the visual token whose read-out is closest to what the model is about to say, and multiplies the two.

Stations: hidden (looked at, not edited) and logits. After the prompt, the states of all visual tokens are kept, of the
last layer (with the final norm) or of those that enter chosen layers (without it). At each step, with l the logits:

  S    = { y : l_y >= max l + ln(plausibility) }
  p    = softmax of l over S;   r_j = softmax over S of the read-out of visual state j
  j*   = argmin over j of JS(p, r_j)
  l'_S = log p + strength * log r_j*,   the others are ruled out

Where the values come from: plausibility 1e-5 and the last layer are the release's for LLaVA-1.5; for Qwen2.5-VL it
takes every second layer. The release multiplies at full weight, which is strength 1. It takes KL(M || p) and
KL(M || r) for the two halves of the divergence, the accident of `kl_div`'s arguments that DoLa's release has too; here
it is the textbook's, and `variant="published"` has the release's. It keeps the read-outs of all visual tokens over the
whole vocabulary (627 MB for 17 layers of LLaVA-1.5); here the states are kept, and only the columns of S are read, of
at most `most` tokens, the best. Where S is larger, the rest of it is ruled out as well.

Cost: a product of the visual states with a few columns of the output embeddings, per token.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method import (
    Finding,
    FindingsCall,
    GuardTarget,
    HiddenEditCall,
    MarkedTokens,
    Method,
    Part,
    ReadOutCall,
    RowSelection,
    lower_implausible,
    option,
    register,
    require_plain_head,
    select_layers,
    variant_option,
)

LAST = "last"


@register("revisit")
@dataclass(frozen=True, kw_only=True)
class ReVisiT(Method):
    """Multiply the next token's probabilities by what the closest visual token reads as."""

    title = "ReVisiT"
    paper = "Revisit What You See: Disclose Language Prior in Vision Tokens for LVLM Decoding, arXiv 2506.09522"
    stations = ("hidden", "logits")
    hidden_rows = "all"
    whole_prompt = "all"
    cross_attention = "its pictures are no tokens of the prompt, so that none of them can be read out"

    strength: float = option(
        1.0,
        help="weight of the visual token's log-probabilities",
        range=(0.0, 10.0),
        neutral=0.0,
        tried=(0.1, 0.3),
        paper="1 in the release",
    )
    plausibility: float = option(
        1e-5,
        help="tokens less than this times as probable as the best are ruled out",
        range=(1e-30, 1.0),
        tried=(0.01, 0.1),
        paper="relative_top = 1e-5 in the release",
    )
    layers: str = option(
        LAST,
        help="whose visual states are read out: 'last', states that enter layers such as '50%-', or both: '8-,last'",
        paper="the last in the release for LLaVA-1.5, every second for Qwen2.5-VL",
    )
    divergence: str = option(
        "textbook",
        help="Jensen-Shannon divergence, or the released code's reversed terms",
        choices=("textbook", "reversed"),
        paper="reversed in the release",
        published="reversed",
    )
    most: int = option(
        64, help="most tokens that are compared; the best of them", range=(2, 1000000), paper="all in the release"
    )
    variant: str = variant_option("published has the released code's divergence")

    def contrasts(self) -> bool:
        """Strength 0 switches it off."""
        return self.strength > 0

    def prepare(self, target: GuardTarget) -> None:
        """Nothing is prepared; a model whose output embeddings cannot be read row by row is refused."""
        if self.contrasts():
            require_plain_head(target.architecture.generator.get_output_embeddings(), self.name)

    def _entering(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers whose entering states are kept."""
        named = [item for item in self.layers.split(",") if item.strip() != LAST]
        return select_layers(",".join(named), target.architecture.depth) if named else ()

    def _behind(self, target: GuardTarget) -> tuple[int, ...]:
        """The last layer, if the states behind it are kept."""
        last = LAST in (item.strip() for item in self.layers.split(","))
        return (target.architecture.depth - 1,) if last else ()

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """Those whose states are kept."""
        return tuple(sorted({*self._entering(target), *self._behind(target)}))

    def hidden_parts(self, target: GuardTarget, prepared: None) -> dict[Part, tuple[int, ...]]:
        """The states in front of the chosen layers, and those behind the last."""
        if not self.contrasts():
            return {}
        return {"entering": self._entering(target), "residual": self._behind(target)}

    def edit_hidden(self, call: HiddenEditCall) -> Tensor | None:
        """Nothing is edited; the states of visual tokens are kept."""
        if call.rows is None:
            return None
        state, shared = call.state, call.shared
        visual = state.visual[:, state.offset : state.length].to(call.hidden.device)
        index = call.rows.index.to(call.hidden.device)
        wanted = visual.gather(1, index) & call.rows.valid.to(call.hidden.device)
        chosen = RowSelection.of(wanted)
        kept = vars(shared).setdefault("states", {})
        if chosen is not None:
            states = chosen.take(call.hidden[:, None])[:, 0]
            # By the place in the prompt as well: it may be read in pieces, or anew without a cache.
            kept[call.part, call.layer, state.offset] = states, chosen.valid
        return None

    def combine_read_out(self, call: ReadOutCall, final: Tensor, extra: Tensor) -> Tensor:
        """The product with the closest visual token, in rows with a picture."""
        kept = vars(call.memory).get("states")
        if not kept:
            return final
        read_as = [
            (call.norm(item) if part == "residual" else item, valid) for part, item, valid in _listed(kept, final)
        ]
        states, valid = (torch.cat([pair[place] for pair in read_as], 1) for place in (0, 1))
        tokens = self._plausible(final)
        read = call.logits_of(states, tokens).to(final.device)
        mixed, closest = self.product(final, tokens, read, valid)
        vars(call.memory).setdefault("closest", []).append(closest[:1])
        return torch.where(call.has_image[:, None], mixed, final)

    def _plausible(self, final: Tensor) -> Tensor:
        """[B, K] long, the best tokens; K is what the row with most plausible ones needs, or `most`."""
        least = final.amax(-1, keepdim=True) + math.log(self.plausibility)
        count = int((final >= least).sum(-1).max())
        return final.topk(min(max(count, 2), self.most, final.shape[-1])).indices

    def product(self, final: Tensor, tokens: Tensor, read: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """[B, V] the logits after the product, and [B] long, which visual state they were multiplied with.

        Args:
            final: [B, V] the model's logits.
            tokens: [B, K] long, the best tokens, best first.
            read: [B, P, K] read-outs of the visual states at these.
            valid: [B, P] bool, which of the P states there are.
        """
        chosen = final.gather(1, tokens)
        outside = chosen < final.amax(-1, keepdim=True) + math.log(self.plausibility)
        log_p = chosen.masked_fill(outside, -torch.inf).log_softmax(-1)
        log_r = read.float().masked_fill(outside[:, None], -torch.inf).log_softmax(-1)
        distance = self.distance(log_p[:, None], log_r).masked_fill(~valid, torch.inf)
        closest = distance.argmin(-1)
        reference = log_r.gather(1, closest[:, None, None].expand(-1, 1, tokens.shape[1]))[:, 0]
        mixed = log_p + self.strength * reference
        ruled_out = lower_implausible(final - final.amax(-1, keepdim=True))
        return ruled_out.scatter(1, tokens, torch.where(outside, ruled_out.gather(1, tokens), mixed)), closest

    def distance(self, log_p: Tensor, log_r: Tensor) -> Tensor:
        """[B, P] divergence of log-probabilities [B, 1, K] from [B, P, K], both minus infinity outside of S."""
        inside = log_p > -torch.inf
        one, other = log_p.masked_fill(~inside, 0), log_r.masked_fill(~inside, 0)
        middle = torch.logaddexp(one, other) - math.log(2)
        if self.divergence == "reversed":
            terms = middle.exp() * (2 * middle - one - other)
        else:
            terms = one.exp() * (one - middle) + other.exp() * (other - middle)
        return (terms * inside).sum(-1) / 2

    def findings(self, call: FindingsCall) -> list[Finding]:
        """The patches whose read-outs the answer was multiplied with."""
        shared = vars(call.state.memory(self.name, -1))
        used: list[Tensor] = shared.get("closest", [])
        count = int(call.state.visual[0].sum())
        if not used or not count:
            return []
        # States of several layers stand one behind the other, each as many as the row with most visual tokens has.
        width = next(iter(shared["states"].values()))[0].shape[1]
        marked = torch.zeros(count, dtype=torch.bool)
        marked[torch.cat(used).cpu() % width] = True
        text = f"{int(marked.sum())} of {count} patches read most like one of the {len(used)} tokens of this answer."
        return [
            MarkedTokens(title="ReVisiT: its references", text=text, marked=marked.numpy(), name="reference patches")
        ]


def _listed(kept: dict, final: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Part, states [B, P, D] and which of them there are [B, P], on the device of the logits."""
    return [(key[0], kept[key][0].to(final.device), kept[key][1].to(final.device)) for key in sorted(kept)]
