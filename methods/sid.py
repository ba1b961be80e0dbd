"""SID: self-introspective decoding (ICLR 2025, arXiv 2408.02032).

The patches that a model attends to least still carry some of the picture, but out of context: a model that sees
nothing else makes things up that go with what is really there. SID lets a second branch see only these and moves away
from its logits.

Stations: attention (of the branch's rows only) and logits. In the branch, from the first layer of `layers` on, all
rows lose the visual keys but the K least attended ones:

  a_j   = mean over heads of the attention that the row which predicts the next token pays to visual token j, in the
          layer with attention below the first of `layers`
  kept  = the K visual tokens j of the smallest a_j;   s_ij = -10000 for the others, for all rows i
  l'    = (1 + strength) l - strength l_branch,   kept where l >= max l + ln(plausibility)

The prompt's rows are masked by what its last row attends to; every generated row by what it attends to itself.

Where the values come from: the released scripts keep 100 of 576 patches for POPE and 50 for CHAIR, from layer 2 on.
`keep` is a share here (0.17 and 0.087), as models have from 64 to some thousand visual tokens; above 1 it is a number.
The released parsers say strength 1, but the line that would pass it on is commented out, so what ran is its sampler's
0.5. In greedy search the release takes the best token without the cut to plausible ones; the cut is on here, and
`variant="published"` switches it off.

Cost: a second branch, whose prompt is read apart: it shares no keys with the given one from the masked layers on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit, BiasFactors
from vlm_guard.method import (
    AttentionCall,
    Branch,
    ContrastCall,
    ContrastMethod,
    Finding,
    FindingsCall,
    GuardTarget,
    MarkedTokens,
    all_heads,
    option,
    plausibility_option,
    register,
    select_attending_layers,
    variant_option,
)

# exp(-10000) is exactly 0 in every floating type, and unlike minus infinity it never makes a NaN.
REMOVED = -1e4


@dataclass(frozen=True, kw_only=True)
class SIDLayers:
    """The layer whose attention ranks the patches, and the layers in which the others are taken away."""

    ranking: int
    masked: frozenset[int]


@register("sid")
@dataclass(frozen=True, kw_only=True)
class SID(ContrastMethod):
    """Move away from the logits of a branch that sees only the least attended patches."""

    title = "SID"
    paper = (
        "Self-Introspective Decoding: Alleviating Hallucinations for Large Vision-Language Models, ICLR 2025, "
        "arXiv 2408.02032"
    )
    stations = ("attention", "logits")
    edited_branch = "negative"
    rows = "all"
    whole_prompt = "all"
    compiles = False

    strength: float = option(
        0.5,
        help="how far to move away from the branch's logits",
        range=(0.0, 10.0),
        neutral=0.0,
        tried=(1.0,),
        paper="alpha: 1 in the released parsers, 0.5 in what ran",
    )
    plausibility: float = plausibility_option("beta = 0.1; the release cuts nothing in greedy search", published=0.0)
    keep: float = option(
        0.17,
        help="visual tokens that the branch sees: up to 1 a share of them, above 1 a number",
        range=(0.0, 100000.0),
        neutral=1.0,
        tried=(0.087,),
        paper="100 of 576 for POPE, 50 for CHAIR in the released scripts",
    )
    layers: str = option(
        "2-",
        help="layers in which the branch loses patches; the layer with attention below the first ranks them",
        paper="from layer 2 on",
    )
    variant: str = variant_option("published does not cut implausible tokens, as the release in greedy search")

    def prepare(self, target: GuardTarget) -> SIDLayers:
        """Which layer ranks and which are masked.

        Raises:
            ValueError: no layer with attention lies below the first masked one, or none is masked.
        """
        attending = [entry.index for entry in target.architecture.layers]
        masked = select_attending_layers(self.layers, target)
        below = [layer for layer in attending if masked and layer < masked[0]]
        listed = ", ".join(map(str, attending))
        if not below:
            raise ValueError(
                f"sid: layers {self.layers!r} need attention in them and in a layer below, which ranks patches; "
                f"this model has attention in layers {listed}"
            )
        return SIDLayers(ranking=below[-1], masked=frozenset(masked))

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The ranking layer and the masked ones."""
        plan = self.prepare(target)
        return tuple(sorted({plan.ranking, *plan.masked}))

    def prompt_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """None: the ranking reads the last row, and a row that a layer does not compute needs no mask."""
        return ()

    def contrasts(self) -> bool:
        """Strength 0, or a branch that sees everything, switches it off."""
        return self.strength > 0 and self.keep != 1

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same prompt and picture; what differs is what its rows attend to."""
        return Branch(prompt=call.prompt.same(), images="same", active=call.prompt.has_image)

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The ranking in its layer; the mask in the others."""
        if not self.contrasts():
            return None
        plan: SIDLayers = call.prepared
        shared = call.state.memory(self.name, -1)
        if call.layer == plan.ranking:
            # While a prompt is read, a layer is asked more than once; its mask of visual tokens tells a new reading.
            if call.is_decode or getattr(shared, "read", None) is not call.state.visual:
                shared.read, shared.removed = call.state.visual, self._removed(call)
                if not call.is_decode:
                    call.found.removed = shared.removed[0, 0]
            return None
        return _taken_away(call, shared.removed)

    def _removed(self, call: AttentionCall) -> Tensor:
        """[B, 1 or Q, P] bool, the visual tokens that the rows of this pass lose; 1 where all lose the same."""
        answer = call if call.is_decode else call.select("answer")
        if answer is None:
            raise ValueError("sid has to see the whole prompt in one pass; do not set prefill_chunk_size with it")
        visual = call.state.visual.to(call.query.device)
        weights = all_heads(answer.weights(), 1, call.guard.target).mean(1)[..., : visual.shape[1]]
        removed = self.removed(weights, visual)
        if removed.shape[1] == 1 or answer.rows is None:
            return removed
        # A pass over prompt and answer: prompt rows lose what its last row loses, each row of the answer its own.
        every = removed[:, :1].repeat(1, call.query.shape[2], 1)
        return answer.rows.to(every.device).write(every[:, :, None], removed[:, :, None])[:, :, 0]

    def removed(self, weights: Tensor, visual: Tensor) -> Tensor:
        """[B, R, P] bool, the visual tokens that a row loses.

        Args:
            weights: [B, R, P] attention of R rows, mean over heads.
            visual: [B, P] bool.
        """
        count = visual.sum(-1)
        kept = (count * self.keep).round() if self.keep <= 1 else torch.full_like(count, round(self.keep))
        order = weights.masked_fill(~visual[:, None], torch.inf).argsort(dim=-1, stable=True)
        rank = order.argsort(dim=-1)
        return (rank >= kept.clamp_min(1)[:, None, None]) & visual[:, None]

    def findings(self, call: FindingsCall) -> list[Finding]:
        """The patches that the branch did not see."""
        removed, visual = getattr(call.kept, "removed", None), call.state.visual[0].cpu()
        if removed is None:
            return []
        marked = removed.cpu()[: len(visual)][visual[: len(removed)]]
        text = (
            f"The answer moved away from that of a branch which saw {int((~marked).sum())} of {len(marked)} patches, "
            "the least attended ones. Crossed-out patches were hidden from it while it read the prompt."
        )
        return [
            MarkedTokens(title="SID: what its branch sees", text=text, marked=marked.numpy(), name="hidden patches")
        ]


def _taken_away(call: AttentionCall, removed: Tensor) -> AttentionEdit:
    """The edit of a masked layer, from [B, 1 or Q, P] bool of this pass."""
    over_keys = removed.to(call.query.device).float() * REMOVED
    if removed.shape[1] == 1:
        return AttentionEdit.constant_bias(BiasFactors(over_keys=over_keys[:, 0]))
    # A layer that shares an earlier one's keys may compute fewer rows of a prompt: the last ones.
    bias = over_keys[:, None, -call.query.shape[2] :]
    return AttentionEdit(bias=bias if call.rows is None else call.rows.take(bias))
