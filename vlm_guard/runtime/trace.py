"""A record of where attention went while an answer was generated, for plots, the demo and debugging.

Attention is not an explanation: a token that draws attention need not be what the answer rests on.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import edited_attention
from vlm_guard.method.base import Sign
from vlm_guard.method.split_heads import all_heads
from vlm_guard.method.visual_tokens import RowSelection
from vlm_guard.runtime.attention_context import AttentionContext


@dataclass(kw_only=True, eq=False)
class AttentionTrace:
    """The attention of every generated token, layer by layer, after the guard's edits.

    Step s is the row that predicts generated token s (step 0 is the last prompt row).

    Attributes:
        layers: the recorded layers, ascending.
        weights: per layer, one [B, H, K] float32 tensor on the CPU for each step; K grows with the answer.
        negative: the trace of a second branch, where one is wanted.
    """

    layers: tuple[int, ...]
    weights: dict[int, list[Tensor]] = field(default_factory=dict)
    negative: "AttentionTrace | None" = None

    def of_side(self, side: Sign) -> "AttentionTrace | None":
        """The trace for the rows of a branch; None where they are not recorded."""
        return self if side == "positive" else self.negative

    def record(self, layer: int, weights: Tensor, first_key: int) -> None:
        """Take the weights [B, H, R, K] of R answer rows; a sliding layer's missing first keys count as zero."""
        rows = torch.nn.functional.pad(weights.detach().float().cpu(), (first_key, 0))
        self.weights.setdefault(layer, []).extend(rows.unbind(2))

    @property
    def steps(self) -> int:
        """Number of recorded steps."""
        return len(next(iter(self.weights.values()), []))

    def visual_share(self, visual: Tensor) -> Tensor:
        """[steps, layers, B, H] share of the attention that is on visual tokens.

        Args:
            visual: [B, P] bool visual mask of the prompt, such as `guard.state.visual`.
        """
        return self._share(visual.cpu())

    def first_token_share(self) -> Tensor:
        """[steps, layers, B, H] share of the attention on the first key."""
        return torch.stack(
            [torch.stack([self.weights[layer][step][..., 0] for layer in self.layers]) for step in range(self.steps)]
        )

    def heat_map(
        self, visual: Tensor, step: int, row: int = 0, layer: int | None = None, head: int | None = None
    ) -> Tensor:
        """[visual tokens of the row] attention of one step: one layer and head, or the mean of the others.

        Raises:
            ValueError: the step or layer was not recorded.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} was not recorded; recorded are 0 to {self.steps - 1}")
        if layer is not None and layer not in self.weights:
            raise ValueError(f"layer {layer} was not recorded; recorded are {sorted(self.weights)}")
        mask = visual[row].cpu()
        chosen = self.layers if layer is None else (layer,)
        maps = torch.stack([self.weights[item][step][row][:, : mask.shape[0]][:, mask] for item in chosen])
        return maps.mean((0, 1)) if head is None else maps[:, head].mean(0)

    def _share(self, mask: Tensor) -> Tensor:
        steps = []
        for step in range(self.steps):
            of_layers = []
            for layer in self.layers:
                weights = self.weights[layer][step]
                described = mask[:, : weights.shape[-1]]
                of_layers.append((weights[..., : described.shape[1]] * described[:, None]).sum(-1))
            steps.append(torch.stack(of_layers))
        return torch.stack(steps)


def record_call(context: AttentionContext, tracer: AttentionTrace) -> None:
    """Hand the edited weights of the answer rows of a guarded attention call to the trace."""
    if context.slot.layer not in tracer.layers:
        return
    batch, given = context.state.real.shape[0], context.given
    if given.query.shape[0] > batch:
        # Further rows behind those of the generation, such as twins without their image, are not traced.
        context = replace(context, given=given.part(0, batch, 0))
    count = given.query.shape[2]
    rows = None
    if count > 1 or context.state.reading:
        rows = context.state.rows("answer", count)
        if rows is None:
            return
    weights = _edited_weights(context, rows, count)
    tracer.record(context.slot.layer, all_heads(weights, 1, context.slot.guard.target), context.first_key)


def _edited_weights(context: AttentionContext, rows: RowSelection | None, count: int) -> Tensor:
    """[B, H, R, K] weights of the asked rows after the edits, in each row those of the methods whose gates are open."""
    gates, state = context.slot.guard.gates, context.state
    parts = gates.parts(context.processors, state, count, state.skipped(count)) if gates else ()
    found: Tensor | None = None
    for part in parts or (None,):
        own = context if part is None else replace(context, processors=part.processors)
        edit = own.edit(rows, "answer") or AttentionEdit()
        problem = replace(own.problem(rows, edit), return_weights=True)
        weights = edited_attention(problem, "torch").asked_weights()
        if found is None or part is None or part.where is None:
            found = weights
            continue
        where = part.where[:, None, :, None].to(weights.device)
        found = torch.where(where if rows is None else rows.take(where), weights, found)
    if found is None:
        raise RuntimeError("the parts of a gated pass cover every row, so there is at least one")
    return found
