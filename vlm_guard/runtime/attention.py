"""The one attention function of the project, registered with transformers' attention interface.

It is registered once per implementation that a model may have had (`vlm_guard_sdpa`, `vlm_guard_eager`, ...), each
time together with that implementation's own mask function: transformers looks both up by the same name, and without
the second the causal mask is silently missing. The name therefore says what unedited calls fall back to, and no
state has to remember it.

A guarded attention module carries a `LayerSlot`. Modules without one (another model that shares the config object)
run their previous implementation untouched. A module of a vision tower may carry a watcher instead, which sees the
queries and keys of every call and changes nothing.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.kernels.low_rank_bias import low_rank_bias
from vlm_guard.method.attention_calls import SLOT, WATCHER, AttentionCall, BoundMethod, LayerSlot
from vlm_guard.method.base import RowScope
from vlm_guard.method.state import GenerationState
from vlm_guard.method.visual_tokens import RowSelection
from vlm_guard.runtime.graph_break import kept_out
from vlm_guard.runtime.trace import AttentionTrace, record_call

if TYPE_CHECKING:
    from vlm_guard.runtime.decode_step import DecodeStep

PREFIX = "vlm_guard_"
# Calls with these arguments carry sparse or paged attention of their own, which an edit cannot reach.
_FOREIGN_ARGUMENTS = ("indices", "block_indices", "cache")
_WIDEST_FIRST: tuple[RowScope, ...] = ("all", "text", "answer")
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


def call_previous(previous: str, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The implementation the model had before; eager lives in the model's own file."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(previous, eager)(module, *args, **kwargs)


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
    slot: LayerSlot | None = carried.get(SLOT)
    if slot is None or any(kwargs.get(name) is not None for name in _FOREIGN_ARGUMENTS):
        return call_previous(previous, module, query, key, value, attention_mask, **kwargs)
    reading = slot.guard.reading
    if reading.step is not None:
        return _attend_in_step(previous, slot, reading.step, module, query, key, value, attention_mask, kwargs)
    if torch.compiler.is_compiling():
        # Somebody else's graph: what a guard keeps in Python changes from pass to pass and must not be traced.
        return _guarded_attention_outside(previous, module, query, key, value, attention_mask, **kwargs)
    running = reading.current
    if running is None:
        if slot.processors:
            reading.say(_OUTSIDE)
        return call_previous(previous, module, query, key, value, attention_mask, **kwargs)
    groups = running.groups
    if groups is None:
        return _attend(previous, slot, running.state, module, query, key, value, attention_mask, kwargs)
    if not any(_acts(slot, group.state) for group in groups):
        return call_previous(previous, module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for group in groups:
        part = group.take(query, key, value, attention_mask, kwargs)
        outputs.append(_attend(previous, slot, group.state, module, *part)[0])
    return torch.cat(outputs), None


_guarded_attention_outside = kept_out(guarded_attention)


def _attend_in_step(
    previous: str,
    slot: LayerSlot,
    step: "DecodeStep",
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Attention of a compiled decode step: nothing is asked or kept here, the edits were made before."""
    parts = step.layers.get(slot.layer)
    if parts is None:
        return call_previous(previous, module, query, key, value, mask, **kwargs)
    outputs = []
    for part in parts:
        taken, dropped = (query, key, value, mask, kwargs), 0
        if part.rows is not None:
            taken, dropped = part.rows.take(*taken), part.rows.dropped
        own_key = None
        if step.position is not None:
            own_key = (step.position.to(value.device) - dropped).clamp_max(taken[1].shape[2] - 1)
        context = _Context(slot, (), slot.guard.reading.last, module, *taken, own_key=own_key)
        outputs.append(_decode_with(context, previous, part.edit)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), None


def _attend(
    previous: str,
    slot: LayerSlot,
    state: GenerationState | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Attention of the rows of one generation state."""
    if not _acts(slot, state):
        return call_previous(previous, module, query, key, value, mask, **kwargs)
    processors = slot.of_side(state.side)
    if state.only is not None:
        processors = tuple(bound for bound in processors if bound.method.name == state.only)
    if state.reading:
        state.attended.add(slot.layer)
    context = _Context(slot, processors, state, module, query, key, value, mask, kwargs)
    # A pass in which only one method runs looks at the prompt beforehand: it belongs to no generated token.
    trace = _trace(slot, state)
    if trace is not None and state.only is None:
        record_call(context, trace)
    if not processors:
        return call_previous(previous, module, query, key, value, mask, **kwargs)
    if query.shape[2] == 1 and not state.reading:
        return _decode(context, previous)
    biased = _constant_bias(context)
    if biased is not None:
        output, weights = _attend_biased(context, previous, biased), None
    else:
        output, weights = call_previous(previous, module, query, key, value, mask, **kwargs)
    return _edit_rows(replace(context, output=output), biased is not None), weights


def _acts(slot: LayerSlot, state: GenerationState | None) -> bool:
    """Whether anything looks at or edits the attention of this layer for these rows."""
    if state is None or not state.active:
        return False
    return _trace(slot, state) is not None or bool(slot.of_side(state.side))


def _trace(slot: LayerSlot, state: GenerationState) -> AttentionTrace | None:
    """What records the attention of these rows, if anything does."""
    tracer = slot.guard.reading.tracer
    return None if tracer is None else tracer.of_side(state.side)


@dataclass(frozen=True, eq=False)
class _Context:
    """The arguments of one guarded call."""

    slot: LayerSlot
    processors: tuple[BoundMethod, ...]
    state: GenerationState
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: dict[str, Any]
    output: Tensor | None = None
    own_key: Tensor | None = None

    def edit(self, rows: RowSelection | None, scope: RowScope, *, wider: bool = True) -> AttentionEdit | None:
        """The merged edit of all processors whose rows include `scope`, or (not `wider`) are exactly these."""
        merged = None
        for bound in self.processors:
            if rows is not None and _WIDEST_FIRST.index(bound.method.rows) > _WIDEST_FIRST.index(scope):
                continue
            if not wider and bound.method.rows != scope:
                continue
            edit = bound.method.edit_attention(self.call(bound, rows))
            edit = None if edit is None else edit.from_key(self.first_key)
            if edit is not None and not edit.is_empty:
                merged = edit if merged is None else merged.merge(edit)
        return merged

    def call(self, bound: BoundMethod, rows: RowSelection | None) -> AttentionCall:
        """What the processor of `bound` sees when it is asked for these rows."""
        return AttentionCall(
            method=bound.method.name,
            layer=self.slot.layer,
            module=self.module,
            query=self.query,
            key=self.key,
            value=self.value,
            rows=rows,
            state=self.state,
            memory=self.state.memory(bound.method.name, self.slot.layer),
            prepared=bound.prepared,
            first_key=self.first_key,
            output=self.output,
            problem=partial(self.problem, rows),
            select=partial(self.select, bound),
        )

    def select(self, bound: BoundMethod, rows: RowScope | RowSelection) -> AttentionCall | None:
        """The call for the rows of a scope, or for any rows, which need not be the rows that are edited."""
        if isinstance(rows, str):
            rows = self.state.rows(rows, self.query.shape[2])
        return None if rows is None else self.call(bound, rows)

    @property
    def first_key(self) -> int:
        """Position of key 0; the cache of a sliding or chunked layer holds only the last keys."""
        return max(0, self.first_row + self.query.shape[2] - self.key.shape[2])

    @property
    def first_row(self) -> int:
        """Position of query 0; layers that share another layer's keys leave the first rows of a prompt out."""
        return self.state.offset + self.state.skipped(self.query.shape[2])

    def problem(self, rows: RowSelection | None, edit: AttentionEdit) -> AttentionProblem:
        """The operation for the selected rows (all of them when `rows` is None)."""
        query, key, kwargs = self.query, self.key, self.kwargs
        count, keys = query.shape[2], key.shape[2]
        mask, positions = self.mask, None
        if mask is not None:
            mask = mask[..., :keys]
            mask = mask if rows is None else self.state.row_mask(rows, mask)
        elif count > 1 and self._is_causal():
            # No mask means the first tokens of a sequence: key j is query j (a static cache has empty keys behind).
            positions = torch.arange(count, device=query.device)[None] if rows is None else rows.index
        own_value = None
        if edit.self_mix is not None:
            own_value = self._own_value(rows)
        bias = kwargs.get("position_bias")
        if bias is not None:
            bias = bias[..., :keys] if rows is None else rows.take_mask(bias[..., :keys])
        scaling = kwargs.get("scaling")
        sinks = kwargs.get("s_aux")
        return AttentionProblem(
            query=query if rows is None else rows.take(query),
            key=key,
            value=self.value,
            edit=edit,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            mask=mask,
            row_positions=positions,
            softcap=kwargs.get("softcap"),
            sink_logits=kwargs.get("sinks") if sinks is None else sinks,
            position_bias=bias,
            own_value=own_value,
            return_statistics=False,
        )

    def _is_causal(self) -> bool:
        asked = self.kwargs.get("is_causal")
        return getattr(self.module, "is_causal", True) if asked is None else asked

    def _own_value(self, rows: RowSelection | None) -> Tensor:
        """[B, G, R, Dv] values of the query rows themselves."""
        if self.own_key is not None:
            return self.value.index_select(2, self.own_key)
        first = self.first_row - self.first_key
        own = self.value[:, :, first : first + self.query.shape[2]]
        return own if rows is None else rows.take(own)


def _decode(context: _Context, previous: str) -> tuple[Tensor, Tensor | None]:
    """One new token: the edit replaces the model's attention, so nothing is computed twice."""
    return _decode_with(context, previous, _decode_edit(context))


def _decode_with(context: _Context, previous: str, edit: AttentionEdit | None) -> tuple[Tensor, Tensor | None]:
    if edit is not None and edit.changes_weights:
        backend = context.slot.guard.attention_backend
        return edited_attention(context.problem(None, edit), backend).output, None
    arguments = (context.module, context.query, context.key, context.value, context.mask)
    output, weights = call_previous(previous, *arguments, **context.kwargs)
    if edit is not None:
        output = _edit_output(output, edit, context, None)
    return output, weights


def _decode_edit(context: _Context) -> AttentionEdit | None:
    """The merged edit of a decode step; made once a generation where no method changes it from step to step."""
    known, layer = context.state.steady_edits, context.slot.layer
    if layer in known and context.first_key == 0:
        return known[layer]
    edit = context.edit(None, "answer")
    if context.first_key == 0 and all(bound.method.steady for bound in context.processors):
        known[layer] = edit
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
    edit = _Context(slot, processors, state, module, query, key, value, None, {}).edit(None, "answer")
    return None if edit is None else edit.with_fixed_shapes(key.shape[2], torch.promote_types(key.dtype, torch.float32))


def _constant_bias(context: _Context) -> AttentionEdit | None:
    """The edit for all rows, if it is one that the model's previous attention can compute itself."""
    # A soft cap comes before the bias, but a bias inside the dot product would be capped with it.
    if all(bound.method.rows != "all" for bound in context.processors) or context.kwargs.get("softcap") is not None:
        return None
    rows = context.state.rows("all", context.query.shape[2])
    edit = None if rows is None else context.edit(rows, "all")
    return edit if edit is not None and edit.is_constant_bias else None


def _attend_biased(context: _Context, previous: str, edit: AttentionEdit) -> Tensor:
    """The previous attention with a constant bias, as extra columns of queries and keys; [B, Q, H, Dv]."""
    query, value, kwargs = context.query, context.value, dict(context.kwargs)
    scaling = kwargs.get("scaling")
    kwargs["scaling"] = query.shape[-1] ** -0.5 if scaling is None else scaling
    factors = edit.bias_factors
    wide = low_rank_bias(
        query, context.key, value, factors.over_keys, None, factors.head_gate, scaling=kwargs["scaling"]
    )
    output, _ = call_previous(previous, context.module, *wide, context.mask, **kwargs)
    return output[..., : value.shape[-1]]


def _edit_rows(context: _Context, biased: bool) -> Tensor:
    """Overwrite the edited rows of a finished attention output; wider scopes first, so that narrower ones win.

    `biased` says that the output already has the weights of the edit for all rows.
    """
    output = context.output
    scopes = {bound.method.rows for bound in context.processors}
    for scope in _WIDEST_FIRST:
        if scope not in scopes:
            continue
        rows = context.state.rows(scope, context.query.shape[2])
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
            everywhere = scope == "all" and edit.self_mix is None
            output = _edit_output(output, edit, context, None if everywhere else rows)
    return output


def _edit_output(output: Tensor, edit: AttentionEdit, context: _Context, rows: RowSelection | None) -> Tensor:
    """Head scale and own-value mixing on a finished output [B, Q, H, D], where no weight has to be recomputed."""
    chosen = output if rows is None else rows.take(output.transpose(1, 2)).transpose(1, 2)
    if edit.self_mix is not None:
        heads_per_group = context.query.shape[1] // context.key.shape[1]
        own = context._own_value(rows).repeat_interleave(heads_per_group, 1).transpose(1, 2)
        mix = edit.self_mix[:, None, :, None].to(output.dtype)
        chosen = (1 - mix) * chosen + mix * own
    if edit.head_scale is not None:
        chosen = chosen * edit.head_scale[:, None, :, None].to(output.dtype)
    return chosen if rows is None else rows.write(output, chosen)
