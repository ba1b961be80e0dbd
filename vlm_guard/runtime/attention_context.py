"""One attention call of a guarded module: what it was given, and what methods are shown and asked of it."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem
from vlm_guard.method.attention_calls import AttentionCall, BoundMethod, LayerSlot
from vlm_guard.method.base import RowScope
from vlm_guard.method.state import GenerationState
from vlm_guard.method.visual_tokens import RowSelection

WIDEST_FIRST: tuple[RowScope, ...] = ("all", "text", "answer")


def _no_eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What is called where the eager attention is asked for and the model's file has none.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{type(module).__module__} has no eager_attention_forward, so {type(module).__name__} cannot run with "
        "attn_implementation='eager'; load the model with 'sdpa'"
    )


def call_previous(previous: str, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The implementation the model had before; eager lives in the model's own file."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", _no_eager)
    return ALL_ATTENTION_FUNCTIONS.get_interface(previous, eager)(module, *args, **kwargs)


@dataclass(eq=False, slots=True)
class AttentionInput:
    """What transformers hands to an attention function.

    Attributes:
        previous: name of the implementation that serves every unedited call and row.
        module: the attention module.
        query: [B, H, Q, D]. key: [B, G, K, D]. value: [B, G, K, Dv].
        mask: [B or 1, 1 or H, Q, K] bool or float, or None.
        kwargs: the other arguments (scaling, softcap, s_aux, sliding_window, ...).
    """

    previous: str
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: dict[str, Any]

    @property
    def keys(self) -> int:
        """K."""
        return self.key.shape[2]

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """The output [B, Q, H, Dv] without any edit, and the weights, if the implementation returns them."""
        return call_previous(self.previous, self.module, self.query, self.key, self.value, self.mask, **self.kwargs)

    def part(self, first: int, stop: int, dropped: int) -> "AttentionInput":
        """The rows `first` to `stop` of a decode step, without the first `dropped` keys, which are their padding."""
        rows, mask, kwargs = slice(first, stop), self.mask, self.kwargs
        if mask is not None:
            mask = (mask if mask.shape[0] == 1 else mask[rows])[..., dropped : self.key.shape[2]]
        positions = kwargs.get("position_ids")
        if isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[0] == self.query.shape[0]:
            kwargs = {**kwargs, "position_ids": positions[rows]}
        bias = kwargs.get("position_bias")
        if isinstance(bias, Tensor):
            own = bias if bias.shape[0] == 1 else bias[rows]
            kwargs = {**kwargs, "position_bias": own[..., dropped : self.key.shape[2]]}
        query, key, value = self.query[rows], self.key[rows, :, dropped:], self.value[rows, :, dropped:]
        return AttentionInput(self.previous, self.module, query, key, value, mask, kwargs)


@dataclass(frozen=True, eq=False)
class AttentionContext:
    """A guarded call, for the rows of one generation.

    Attributes:
        slot: of the layer.
        processors: the methods that are asked.
        state: the generation.
        given: what the attention function was given.
        output: [B, Q, H, Dv] the output before row edits; None while it is unknown.
        own_key: [1] long, index of the query's own key, where the state's offset must not be read (compiled steps).
    """

    slot: LayerSlot
    processors: tuple[BoundMethod, ...]
    state: GenerationState
    given: AttentionInput
    output: Tensor | None = None
    own_key: Tensor | None = None

    def edit(self, rows: RowSelection | None, scope: RowScope, *, wider: bool = True) -> AttentionEdit | None:
        """The merged edit of all processors whose rows include `scope`, or (not `wider`) are exactly these."""
        merged = None
        for bound in self.processors:
            if rows is not None and WIDEST_FIRST.index(bound.method.rows) > WIDEST_FIRST.index(scope):
                continue
            if not wider and bound.method.rows != scope:
                continue
            edit = bound.method.edit_attention(self.call(bound, rows))
            edit = None if edit is None else edit.of_keys(self.first_key, self.given.keys)
            if edit is not None and not edit.is_empty:
                merged = edit if merged is None else merged.merge(edit)
        return merged

    def call(self, bound: BoundMethod, rows: RowSelection | None) -> AttentionCall:
        """What the processor of `bound` sees when it is asked for these rows."""
        return AttentionCall(
            method=bound.method.name,
            layer=self.slot.layer,
            module=self.given.module,
            query=self.given.query,
            held=self.given,
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
        selected = self.state.rows(rows, self.given.query.shape[2]) if isinstance(rows, str) else rows
        return None if selected is None else self.call(bound, selected)

    @property
    def first_key(self) -> int:
        """Position of key 0; the cache of a sliding or chunked layer holds only the last keys."""
        return max(0, self.first_row + self.given.query.shape[2] - self.given.keys)

    @property
    def first_row(self) -> int:
        """Position of query 0; layers that share another layer's keys leave the first rows of a prompt out."""
        return self.state.offset + self.state.skipped(self.given.query.shape[2])

    def problem(self, rows: RowSelection | None, edit: AttentionEdit) -> AttentionProblem:
        """The operation for the selected rows (all of them when `rows` is None)."""
        query, key, kwargs = self.given.query, self.given.key, self.given.kwargs
        count, keys = query.shape[2], key.shape[2]
        mask, positions = self.given.mask, None
        if mask is not None:
            mask = mask[..., :keys]
            mask = mask if rows is None else self.state.row_mask(rows, mask)
        elif count > 1 and self._is_causal():
            # No mask means the first tokens of a sequence: key j is query j (a static cache has empty keys behind).
            positions = torch.arange(count, device=query.device)[None] if rows is None else rows.index
        own_value = None
        if edit.self_mix is not None:
            own_value = self.own_value(rows)
        bias = kwargs.get("position_bias")
        if bias is not None:
            bias = bias[..., :keys] if rows is None else rows.take_mask(bias[..., :keys])
        scaling = kwargs.get("scaling")
        sinks = kwargs.get("s_aux")
        sinks = kwargs.get("sinks") if sinks is None else sinks
        if sinks is not None and sinks.numel() != query.shape[1]:
            raise ValueError(
                f"{type(self.given.module).__name__} has a sink logit for every row ({list(sinks.shape)}) instead of "
                "one a head, so its attention weights cannot be computed anew"
            )
        return AttentionProblem(
            query=query if rows is None else rows.take(query),
            key=key,
            value=self.given.value,
            edit=edit,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            mask=mask,
            row_positions=positions,
            softcap=kwargs.get("softcap"),
            sink_logits=sinks,
            position_bias=bias,
            own_value=own_value,
            return_statistics=False,
        )

    def _is_causal(self) -> bool:
        asked = self.given.kwargs.get("is_causal")
        return getattr(self.given.module, "is_causal", True) if asked is None else asked

    def own_value(self, rows: RowSelection | None) -> Tensor:
        """[B, G, R, Dv] values of the query rows themselves."""
        if self.own_key is not None:
            return self.given.value.index_select(2, self.own_key)
        first = self.first_row - self.first_key
        own = self.given.value[:, :, first : first + self.given.query.shape[2]]
        return own if rows is None else rows.take(own)
