"""The outputs that a decoder layer adds to its residual stream: of attention and of the feed-forward network.

Where a layer normalises an output before adding it (Gemma 2 and 3, GLM-4V), the normalised one is meant.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vlm_guard.families.architecture import Architecture
from vlm_guard.method.state import GenerationState

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")
EditRows = Callable[[Sublayer, int, Tensor, GenerationState], Tensor | None]
_FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe")
# Norms behind a sub-layer, by the child that tells such a layer from the usual one.
_NORMS_BEHIND = {
    "pre_feedforward_layernorm": {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    "post_self_attn_layernorm": {"attention": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"},
}


@dataclass(frozen=True, eq=False)
class SublayerModule:
    """The module whose output is added to the residual stream."""

    kind: Sublayer
    layer: int
    module: nn.Module


def describe_sublayers(architecture: Architecture, method: str) -> tuple[SublayerModule, ...]:
    """Attention and feed-forward module of every layer with attention, in the order in which they run.

    Raises:
        ValueError: a layer has no module that is its feed-forward network.
    """
    found = []
    for entry in architecture.layers:
        children = dict(entry.layer.named_children())
        marker = next((name for name in _NORMS_BEHIND if name in children), None)
        if marker is not None:
            modules = {kind: children[name] for kind, name in _NORMS_BEHIND[marker].items()}
        else:
            feed_forward = next((children[name] for name in _FEED_FORWARD if name in children), None)
            if feed_forward is None:
                raise ValueError(
                    f"{method} acts on the feed-forward network of each layer, and {type(entry.layer).__name__} of "
                    f"{architecture.model_type} has none as a module; its parts: {', '.join(children)}"
                )
            modules = {"attention": entry.attention, "mlp": feed_forward}
        found += [SublayerModule(kind, entry.index, modules[kind]) for kind in SUBLAYERS]
    return tuple(found)


def replace_output(output: Any, edit: Callable[[Tensor], Tensor | None]) -> Any:
    """A module's output, a tensor or a tuple that begins with it, after `edit`."""
    first = output[0] if isinstance(output, tuple) else output
    edited = edit(first)
    if edited is None:
        return output
    return (edited, *output[1:]) if isinstance(output, tuple) else edited


def edit_answer_rows(
    guard: "Guard", method: str, sublayers: tuple[SublayerModule, ...], edit: EditRows
) -> list[Callable[[], Any]]:
    """Let `edit(kind, layer, rows, state)` replace the outputs of the rows that predict the next token.

    Args:
        guard: whose generations these are.
        method: whose edit it is.
        sublayers: where.
        edit: gets rows [B, R, hidden size] and returns others, or None for no change.

    Returns:
        What undoes it.
    """

    def hook(sublayer: SublayerModule, module: nn.Module, args: tuple, output: Any) -> Any:
        return replace_output(output, partial(_edit_batch, guard, method, sublayer, edit))

    return [item.module.register_forward_hook(partial(hook, item)).remove for item in sublayers]


def _edit_batch(guard: "Guard", method: str, sublayer: SublayerModule, edit: EditRows, output: Tensor) -> Tensor | None:
    parts = list(_states(guard, method))
    if not parts:
        return None
    groups = guard.reading.current.groups
    batch = parts[0][0].visual.shape[0] if groups is None else max(group.stop for group in groups)
    # Some mixtures of experts return their tokens in one row.
    shaped = output if output.dim() == 3 else output.view(batch, -1, output.shape[-1])
    changed = shaped
    for state, rows in parts:
        new = _edit_rows(sublayer, edit, shaped[rows], state)
        if new is not None:
            changed = torch.cat((changed[: rows.start or 0], new, changed[(rows.start or 0) + new.shape[0] :]))
    return None if changed is shaped else changed.view(output.shape)


def _states(guard: "Guard", method: str) -> Iterator[tuple[GenerationState, slice]]:
    """The generations of this pass that are edited, and their batch rows."""
    running = guard.reading.current
    if running is None:
        return
    if running.groups is None:
        candidates = [(running.state, slice(None))]
    else:
        candidates = [(group.state, slice(group.first, group.stop)) for group in running.groups]
    for state, rows in candidates:
        if state is not None and state.active and state.side == "positive" and state.only in (None, method):
            yield state, rows


def _edit_rows(sublayer: SublayerModule, edit: EditRows, output: Tensor, state: GenerationState) -> Tensor | None:
    if not state.reading and output.shape[1] == 1:
        new = edit(sublayer.kind, sublayer.layer, output, state)
        if new is None:
            return None
        return torch.where(state.visual.any(-1).to(output.device)[:, None, None], new, output)
    rows = state.rows("answer", output.shape[1])
    if rows is None:
        return None
    new = edit(sublayer.kind, sublayer.layer, rows.take(output[:, None])[:, 0], state)
    return None if new is None else rows.write(output[:, :, None], new[:, :, None])[:, :, 0]
