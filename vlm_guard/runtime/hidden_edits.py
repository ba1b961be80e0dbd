"""Letting methods replace hidden states: what attention or a feed-forward network adds, or the residual stream itself.

Only the rows that a method asks for are handed to it, and only those of the generations it edits.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_guard.families.layer_parts import LayerPart, decoder_parts, replace_input, replace_output
from vlm_guard.method.attention_calls import BoundMethod
from vlm_guard.method.hidden_edit_call import HiddenEditCall
from vlm_guard.method.state import GenerationState
from vlm_guard.method.visual_tokens import RowSelection

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.target import GuardTarget
    from vlm_guard.runtime.reading import RunningPass


def install_hidden_edits(guard: "Guard", bound: BoundMethod) -> list[Callable[[], Any]]:
    """Let a method edit the parts of the decoder layers that it names.

    The hooks go in front of those there are, so that whoever records hidden states (transformers does with hooks of its
    own, also for `output_hidden_states`) sees the edited ones. Of several methods the last must therefore come first.

    Returns:
        What undoes it.
    """
    undo = []
    for item in edited_parts(guard.target, bound):
        if item.part == "entering":
            hook = partial(_before, guard, bound, item)
            undo.append(item.module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True).remove)
        else:
            undo.append(item.module.register_forward_hook(partial(_hook, guard, bound, item), prepend=True).remove)
    return undo


def edited_parts(target: "GuardTarget", bound: BoundMethod) -> tuple[LayerPart, ...]:
    """The parts of the decoder layers whose output a method edits; none of a method without that hook."""
    if not bound.method.overrides("edit_hidden"):
        return ()
    wanted = bound.method.hidden_parts(target, bound.prepared)
    return tuple(decoder_parts(target.architecture, wanted, bound.method.name))


def _hook(guard: "Guard", bound: BoundMethod, part: LayerPart, module: nn.Module, args: tuple, output: Any) -> Any:
    return replace_output(output, partial(_edit_batch, guard, bound, part))


def _before(
    guard: "Guard", bound: BoundMethod, part: LayerPart, module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    return replace_input(args, kwargs, partial(_edit_batch, guard, bound, part))


def _edit_batch(guard: "Guard", bound: BoundMethod, part: LayerPart, output: Tensor) -> Tensor | None:
    running = guard.reading.current
    generations = [] if running is None else list(_generations(running, bound))
    if running is None or not generations:
        return None
    groups = running.groups
    batch = generations[0][0].visual.shape[0] if groups is None else max(group.stop for group in groups)
    # Some mixtures of experts return their tokens in one row.
    shaped = output if output.dim() == 3 else output.reshape(batch, -1, output.shape[-1])
    changed = shaped
    for state, rows in generations:
        if state.reading:
            state.edited.add((bound.method.name, part.layer, part.part))
        new = _edit_generation(guard, bound, part, shaped[rows], state)
        if new is not None:
            first = rows.start or 0
            # Most passes read one generation, whose rows are all of them.
            whole = new.shape[0] == changed.shape[0]
            changed = new if whole else torch.cat((changed[:first], new, changed[first + new.shape[0] :]))
    return None if changed is shaped else changed.reshape(output.shape)


def _generations(running: "RunningPass", bound: BoundMethod) -> Iterator[tuple[GenerationState, slice]]:
    """The generations of this pass whose rows the method edits, and their batch rows."""
    candidates: list[tuple[GenerationState | None, slice]]
    if running.groups is None:
        candidates = [(running.state, slice(None))]
    else:
        candidates = [(group.state, slice(group.first, group.stop)) for group in running.groups]
    for state, rows in candidates:
        if state is None or not state.active or state.side != bound.method.edited_branch:
            continue
        if state.only in (None, bound.method.name):
            yield state, rows


def _edit_generation(
    guard: "Guard", bound: BoundMethod, part: LayerPart, output: Tensor, state: GenerationState
) -> Tensor | None:
    method, count = bound.method, output.shape[1]
    where = guard.gates.where(bound, state, count) if guard.gates else None
    if where is not None and not bool(where.any()):
        return None

    def edited(hidden: Tensor, rows: RowSelection | None) -> Tensor | None:
        call = HiddenEditCall(
            hidden=hidden,
            part=part.part,
            layer=part.layer,
            rows=rows,
            state=state,
            memory=state.memory(method.name, part.layer),
            shared=state.memory(method.name, -1),
            prepared=bound.prepared,
            target=guard.target,
        )
        return method.edit_hidden(call)

    if not state.reading and output.shape[1] == 1:
        new = edited(output, None)
        chosen = None if state.every_row_has_image else state.visual.any(-1).to(output.device)[:, None, None]
    else:
        rows = state.rows(method.hidden_rows, count)
        if rows is None:
            return None
        rows = rows.to(output.device)
        new = edited(rows.take(output[:, None])[:, 0], rows)
        new = None if new is None else rows.write(output[:, :, None], new[:, :, None])[:, :, 0]
        chosen = None
    if where is not None:
        open_ = where.to(output.device)[:, :, None]
        chosen = open_ if chosen is None else chosen & open_
    return new if new is None or chosen is None else torch.where(chosen, new, output)
