"""The one attention function of the project, registered with transformers' attention interface.

It is registered once per implementation that a model may have had (`vlm_guard_sdpa`, `vlm_guard_eager`, ...), each
time together with that implementation's own mask function: transformers looks both up by the same name, and without
the second the causal mask is silently missing. The name therefore says what unedited calls fall back to, and no
state has to remember it.

A guarded attention module carries a `LayerSlot`. Modules without one (another model that shares the config object)
run their previous implementation untouched. A module of a vision tower may carry a watcher instead, which sees the
queries and keys of every call and changes nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlm_guard.families.chosen_keys import BLOCKS, KEYS, mask_of_chosen_keys
from vlm_guard.kernels.attention_edit import AttentionEdit, BiasFactors
from vlm_guard.kernels.edited_attention import edited_attention
from vlm_guard.kernels.low_rank_bias import low_rank_bias
from vlm_guard.method.attention_calls import SLOT, WATCHER, LayerSlot
from vlm_guard.method.state import GenerationState
from vlm_guard.method.visual_tokens import RowSelection
from vlm_guard.runtime.attention_context import WIDEST_FIRST, AttentionContext, AttentionInput, call_previous
from vlm_guard.runtime.gates import GatedPart
from vlm_guard.runtime.graph_break import kept_out
from vlm_guard.runtime.trace import AttentionTrace, record_call

if TYPE_CHECKING:
    from vlm_guard.runtime.decode_step import DecodeStep

PREFIX = "vlm_guard_"
# Implementations that know of no chosen keys but those of the mask.
_MASKED = ("eager", "sdpa")
_OUTSIDE = (
    "a part of a guarded model was called by itself, outside of model(...) and model.generate(...): the guard does not "
    "know what it reads, and leaves its attention as it is"
)


def guarded_name(previous: str) -> str:
    """The registered name whose unedited calls run `previous`; registers it on first use."""
    name = PREFIX + previous
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, partial(guarded_attention, previous))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[previous])
    return name


def guarded_attention(
    previous: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the edits of this module's layer.

    Args:
        previous: name of the implementation that serves every unedited call and row.
        module: the attention module.
        query: [B, H, Q, D].
        key: [B, G, K, D].
        value: [B, G, K, Dv].
        attention_mask: [B or 1, 1, Q, K] bool or float, or None (causal prefill, or decode without padding).
        **kwargs: whatever the model passes on (scaling, softcap, s_aux, sliding_window, ...).

    Returns:
        Output [B, Q, H, Dv] and the weights, if the previous implementation returned any.
    """
    # Not getattr: a module without the attribute answers slowly, and this runs once a layer and token.
    carried = module.__dict__
    watch: Callable[..., None] | None = carried.get(WATCHER)
    if watch is not None:
        watch(query, key, kwargs.get("scaling"))
    chosen = kwargs.get(KEYS) is not None or kwargs.get(BLOCKS) is not None
    if chosen and previous in _MASKED:
        attention_mask, kwargs = mask_of_chosen_keys(module, query, key, attention_mask, kwargs)
        chosen = False
    slot: LayerSlot | None = carried.get(SLOT)
    # A paged cache, or keys that a special kernel chooses, are attention of another kind, which no edit can reach.
    if slot is None or chosen or kwargs.get("cache") is not None:
        return call_previous(previous, module, query, key, value, attention_mask, **kwargs)
    reading = slot.guard.reading
    given = AttentionInput(previous, module, query, key, value, attention_mask, kwargs)
    if reading.step is not None:
        return _attend_in_step(slot, reading.step, given)
    if torch.compiler.is_compiling():
        # Somebody else's graph: what a guard keeps in Python changes from pass to pass and must not be traced.
        return _guarded_attention_outside(previous, module, query, key, value, attention_mask, **kwargs)
    running = reading.current
    if running is None:
        if slot.processors:
            reading.say(_OUTSIDE)
        return given.plain()
    groups = running.groups
    if groups is None:
        return attend(slot, running.state, given)
    if not any(_acts(slot, group.state) for group in groups):
        return given.plain()
    return torch.cat([attend(slot, group.state, group.take(given))[0] for group in groups]), None


_guarded_attention_outside = kept_out(guarded_attention)


def _attend_in_step(slot: LayerSlot, step: "DecodeStep", given: AttentionInput) -> tuple[Tensor, Tensor | None]:
    """Attention of a compiled decode step: nothing is asked or kept here, the edits were made before."""
    parts = step.layers.get(slot.layer)
    if parts is None:
        return given.plain()
    outputs = []
    for part in parts:
        taken, dropped = (given, 0) if part.rows is None else (part.rows.take(given), part.rows.dropped)
        own_key = None
        if step.position is not None:
            own_key = (step.position.to(taken.value.device) - dropped).clamp_max(taken.key.shape[2] - 1)
        context = AttentionContext(slot, (), step.state, taken, own_key=own_key)
        outputs.append(_decode_with(context, part.edit)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), None


def attend(slot: LayerSlot, state: GenerationState | None, given: AttentionInput) -> tuple[Tensor, Tensor | None]:
    """Attention of the rows of one generation."""
    if state is None or not _acts(slot, state):
        return given.plain()
    processors = slot.of_side(state.side)
    if state.only is not None:
        processors = tuple(bound for bound in processors if bound.method.name == state.only)
    if state.reading:
        state.attended.add(slot.layer)
    context = AttentionContext(slot, processors, state, given)
    # A pass in which only one method runs looks at the prompt beforehand: it belongs to no generated token.
    trace = _trace(slot, state)
    if trace is not None and state.only is None:
        record_call(context, trace)
    if not processors:
        return given.plain()
    gates = slot.guard.gates
    if not gates:
        return _attend_edited(context)
    count = given.query.shape[2]
    parts = gates.parts(processors, state, count, state.skipped(count))
    return _attend_gated(context, parts)


def _attend_gated(context: AttentionContext, parts: tuple[GatedPart, ...]) -> tuple[Tensor, Tensor | None]:
    """Attention where gates are open in some rows and positions; where all are closed it is the model's own."""
    output, weights = None, None
    for part in parts:
        if part.processors:
            own, own_weights = _attend_edited(replace(context, processors=part.processors))
        else:
            own, own_weights = context.given.plain()
        if output is None or part.where is None:
            output, weights = own, own_weights
            continue
        # Rows behind those of the generation are no part of it, and keep what they have.
        chosen = torch.nn.functional.pad(part.where, (0, 0, 0, own.shape[0] - part.where.shape[0]))
        output = torch.where(chosen.to(own.device)[:, :, None, None], own, output)
    if output is None:
        raise RuntimeError("the parts of a gated pass cover every row, so there is at least one")
    return output, weights


def _attend_edited(context: AttentionContext) -> tuple[Tensor, Tensor | None]:
    """Attention with the edits of all processors of a context, of which there is at least one."""
    state, given = context.state, context.given
    if given.query.shape[2] == 1 and not state.reading:
        return _decode_with(context, _decode_edit(context))
    biased = _constant_bias(context)
    if biased is not None:
        output, weights = _attend_biased(context, biased), None
    else:
        output, weights = given.plain()
    return _edit_rows(replace(context, output=output), output, biased is not None), weights


def _acts(slot: LayerSlot, state: GenerationState | None) -> bool:
    """Whether anything looks at or edits the attention of this layer for these rows."""
    if state is None or not state.active:
        return False
    return _trace(slot, state) is not None or bool(slot.of_side(state.side))


def _trace(slot: LayerSlot, state: GenerationState) -> AttentionTrace | None:
    """What records the attention of these rows, if anything does."""
    tracer = slot.guard.reading.tracer
    return None if tracer is None else tracer.of_side(state.side)


def _decode_with(context: AttentionContext, edit: AttentionEdit | None) -> tuple[Tensor, Tensor | None]:
    """One new token: the edit replaces the model's attention, so nothing is computed twice."""
    if edit is not None and edit.changes_weights:
        backend = context.slot.guard.attention_backend
        return edited_attention(context.problem(None, edit), backend).output, None
    output, weights = context.given.plain()
    if edit is not None:
        output = _edit_output(output, edit, context, None)
    return output, weights


def _decode_edit(context: AttentionContext) -> AttentionEdit | None:
    """The merged edit of a decode step; made once a generation where no method changes it from step to step."""
    # Behind gates other methods may act at every step.
    known, key = context.state.steady_edits, (context.slot.layer, context.processors)
    if key in known and context.first_key == 0:
        return known[key]
    edit = context.edit(None, "answer")
    if context.first_key == 0 and all(bound.method.steady for bound in context.processors):
        known[key] = edit
    return edit


def edit_of_later_steps(
    slot: LayerSlot, state: GenerationState, module: nn.Module, key: Tensor, value: Tensor, heads: int
) -> AttentionEdit | None:
    """The merged edit of a decode step, asked for outside of it; its query has a shape and a device, but no content.

    Args:
        slot: of the layer.
        state: the generation, its prompt read.
        module: the attention module.
        key: [B, G, K, D] of the layer's cache.
        value: [B, G, K, Dv] of the layer's cache.
        heads: H, the query heads of a layer.
    """
    processors = slot.of_side(state.side) if state.active else ()
    query = key.new_zeros(()).expand(key.shape[0], heads, 1, key.shape[3])
    given = AttentionInput("", module, query, key, value, None, {})
    edit = AttentionContext(slot, processors, state, given).edit(None, "answer")
    return None if edit is None else edit.with_fixed_shapes(key.shape[2], torch.promote_types(key.dtype, torch.float32))


def _constant_bias(context: AttentionContext) -> BiasFactors | None:
    """The bias of the edit for all rows, if it is one that the model's previous attention can compute itself."""
    # A soft cap comes before the bias, but a bias inside the dot product would be capped with it.
    if (
        all(bound.method.rows != "all" for bound in context.processors)
        or context.given.kwargs.get("softcap") is not None
    ):
        return None
    rows = context.state.rows("all", context.given.query.shape[2])
    edit = None if rows is None else context.edit(rows, "all")
    return edit.bias_factors if edit is not None and edit.is_constant_bias else None


def _attend_biased(context: AttentionContext, factors: BiasFactors) -> Tensor:
    """The previous attention with a constant bias, as extra columns of queries and keys; [B, Q, H, Dv]."""
    given = context.given
    query, value, kwargs = given.query, given.value, dict(given.kwargs)
    scaling = kwargs.get("scaling")
    kwargs["scaling"] = query.shape[-1] ** -0.5 if scaling is None else scaling
    wide = low_rank_bias(query, given.key, value, factors.over_keys, None, factors.head_gate, scaling=kwargs["scaling"])
    output, _ = call_previous(given.previous, given.module, *wide, given.mask, **kwargs)
    return output[..., : value.shape[-1]]


def _edit_rows(context: AttentionContext, output: Tensor, biased: bool) -> Tensor:
    """Overwrite the edited rows of a finished attention output; wider scopes first, so that narrower ones win.

    `biased` says that the output already has the weights of the edit for all rows.
    """
    scopes = {bound.method.rows for bound in context.processors}
    for scope in WIDEST_FIRST:
        if scope not in scopes:
            continue
        rows = context.state.rows(scope, context.given.query.shape[2])
        if rows is None:
            continue
        edit = context.edit(rows, scope)
        if edit is None:
            continue
        if edit.changes_weights and not (biased and scope == "all"):
            result = edited_attention(context.problem(rows, edit), context.slot.guard.attention_backend)
            output = rows.write(output, result.output)
            continue
        # What wider scopes do to outputs has been done to these rows already.
        edit = context.edit(rows, scope, wider=False)
        if edit is not None and (edit.head_scale is not None or edit.self_mix is not None):
            # A head scale for all rows needs no selection of rows: where nothing is edited it is 1.
            of_rows = edit.head_scale is not None and edit.head_scale.dim() == 3
            everywhere = scope == "all" and edit.self_mix is None and not of_rows
            output = _edit_output(output, edit, context, None if everywhere else rows)
    return output


def _edit_output(output: Tensor, edit: AttentionEdit, context: AttentionContext, rows: RowSelection | None) -> Tensor:
    """Head scale and own-value mixing on a finished output [B, Q, H, D], where no weight has to be recomputed."""
    chosen = output if rows is None else rows.take(output.transpose(1, 2)).transpose(1, 2)
    if edit.self_mix is not None:
        heads_per_group = context.given.query.shape[1] // context.given.key.shape[1]
        own = context.own_value(rows).repeat_interleave(heads_per_group, 1).transpose(1, 2)
        mix = edit.self_mix[:, None, :, None].to(output.dtype)
        chosen = (1 - mix) * chosen + mix * own
    if edit.head_factors is not None:
        chosen = chosen * edit.head_factors.transpose(1, 2).to(output.dtype)
    return chosen if rows is None else rows.write(output, chosen)
