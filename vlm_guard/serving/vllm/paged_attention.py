"""Edits of attention over a paged cache: which rows of a step have them, and how the rows are computed anew.

vLLM's own backend has computed every row and written every key and value. What is guarded is then overwritten: rows of
prompts request by request, with the same code as in transformers, and decoded rows together, all requests of one offer
in one stacked edit.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.stacked_edits import stack_edits
from vlm_guard.method.base import Sign
from vlm_guard.method.state import GenerationState
from vlm_guard.runtime.attention import attend, edit_of_later_steps
from vlm_guard.runtime.attention_context import AttentionInput
from vlm_guard.serving.vllm.block_attention import BlockCall, BlockEdit
from vlm_guard.serving.vllm.block_layout import BlockLayout, DecodeAttention
from vlm_guard.serving.vllm.observed_rows import ObservedRows
from vlm_guard.serving.vllm.rows import GuardedRequest, RowTable
from vlm_guard.serving.vllm.served_guards import EditedLayer, ServedGuard, ServedGuards

PLAN = "vlm_guard_plan"
"""The attribute of vLLM's description of a step that holds what is guarded in it."""


@dataclass(eq=False, slots=True)
class FinishedInput(AttentionInput):
    """An attention call whose unedited output is known already.

    Attributes:
        finished: [B, Q, H, Dv].
    """

    finished: Tensor

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """The output that vLLM's own backend computed."""
        return self.finished, None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowRange:
    """Consecutive rows of a step that belong to one request.

    Attributes:
        request: the request. served: its guard. state: its generation, which has taken in these rows.
        row: of the request. rows: where its own are among the rows of the step.
        length: how many keys the last of them sees.
        blocks: [n] long, the blocks of its cache; none where it is edited together with others.
        mask: [1, 1, Q, length] bool; None for the first rows of a prompt, and for a single row.
        together: whether it is a single row that is edited together with those of other requests.
        text: the rows of its text alone, where they are read beside it in this step.
    """

    request: GuardedRequest
    served: ServedGuard
    state: GenerationState
    row: int
    rows: slice
    length: int
    blocks: Tensor
    mask: Tensor | None
    together: bool
    text: slice | None = None

    @property
    def begins(self) -> bool:
        """Whether its keys are exactly those of these rows."""
        return self.length == self.rows.stop - self.rows.start


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeGroup:
    """One row each of requests that share an offer and a branch, and have about as many keys.

    Attributes:
        served: their guard. side: their branch.
        requests: by row. states: their generations.
        rows: their rows in the step; [N] long where they are not consecutive.
        places: of the blocks of their caches, which are padded with block 0; see `BlockLayout`.
        mask: [N, 1, 1, K] bool, the keys each may see.
        edits: the stacked edits of layers that were asked for; None where nothing is edited.
    """

    served: ServedGuard
    side: Sign
    requests: tuple[GuardedRequest, ...]
    states: tuple[GenerationState, ...]
    rows: slice | Tensor
    places: Tensor
    mask: Tensor
    edits: dict[int, BlockEdit | None]

    @property
    def keys(self) -> int:
        """K, as many keys as are read of each row."""
        return self.mask.shape[-1]


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What is guarded in one step.

    Attributes:
        ranges: rows that are edited request by request.
        groups: decoded rows that are edited together.
        observed: rows of prompts that methods look at between the layers.
    """

    ranges: Sequence[RowRange]
    groups: Sequence[DecodeGroup]
    observed: Sequence[ObservedRows]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRows:
    """The rows of a step as vLLM lays them out.

    Attributes:
        starts: [R + 1] first row of each request. lengths: [R] keys that the last row of each sees.
        block_table: [R, n] block numbers of each request.
        block_size: keys of a block.
    """

    starts: Sequence[int]
    lengths: Sequence[int]
    block_table: Tensor
    block_size: int


class StepPlanner:
    """Makes the plan of every step.

    Args:
        served: the guards.
        table: which request is in which row.
        layout: of the cache's blocks.
    """

    KEPT = 64
    """So many sets of requests that decode together are remembered with their stacked edits."""

    def __init__(self, served: ServedGuards, table: RowTable, layout: BlockLayout) -> None:
        self._served = served
        self._table = table
        self._layout = layout
        self._stacked: OrderedDict[tuple[int, ...], dict[int, BlockEdit | None]] = OrderedDict()

    def plan(self, step: StepRows) -> StepPlan | None:
        """The plan of a step; None where nothing is guarded in it."""
        ranges: list[RowRange] = []
        observed: list[ObservedRows] = []
        decoded: dict[tuple[str, Sign], list[RowRange]] = {}
        for row, request in sorted(self._table.requests.items()):
            served = self._served.asked(request.extra_args)
            if served is None or row >= len(step.lengths) or step.starts[row] == step.starts[row + 1]:
                continue
            observers = served.observers[request.side]
            if not served.layers[request.side] and not observers:
                continue
            state = _read_on(request, served, row, step)
            if observers and state.active and state.reading:
                observed.append(ObservedRows(observers, state, slice(step.starts[row], step.starts[row + 1])))
            found = self._range(row, request, served, state, step)
            if found is None:
                continue
            if found.together:
                decoded.setdefault((found.served.offer.name, request.side), []).append(found)
            else:
                ranges.append(found)
        groups = [self._group(alike, step) for found in decoded.values() for alike in _alike(found)]
        return StepPlan(ranges, groups, observed) if ranges or groups or observed else None

    def _range(
        self, row: int, request: GuardedRequest, served: ServedGuard, state: GenerationState, step: StepRows
    ) -> RowRange | None:
        """The rows of a request in this step; None where none of them is edited."""
        first, stop, length = step.starts[row], step.starts[row + 1], step.lengths[row]
        count = stop - first
        offset = length - count
        if not state.active or not served.layers[request.side] or (count > 1 and not _edits_any(served, state, count)):
            return None
        if served.edits_like_answers[request.side] and length == len(request.prompt):
            first = stop - 1  # Of a prompt only the row that predicts the answer is edited, just as the answer's are.
        single = stop - first == 1 and (first > step.starts[row] or not state.reading)
        mask = None
        if 1 < stop - first < length:
            device = step.block_table.device
            seen = torch.arange(length, device=device), torch.arange(offset, length, device=device)
            mask = (seen[0] <= seen[1][:, None])[None, None]
        together = single and served.is_steady[request.side]
        blocks = _NO_BLOCKS if together else step.block_table[row, : -(-length // step.block_size)].long()
        text = None
        if request.streams is not None and state.reading and not request.streams.scales:
            beside = self._table.text_row(request)
            text = slice(step.starts[beside], step.starts[beside + 1])
        return RowRange(
            request=request,
            served=served,
            state=state,
            row=row,
            rows=slice(first, stop),
            length=length,
            blocks=blocks,
            mask=mask,
            together=together,
            text=text,
        )

    def _group(self, found: Sequence[RowRange], step: StepRows) -> DecodeGroup:
        given = [item.length for item in found]
        device = step.block_table.device
        longest, lengths = max(given), torch.tensor(given, device=device)
        key = tuple(item.request.serial for item in found)
        edits = self._stacked.setdefault(key, {})
        self._stacked.move_to_end(key)
        while len(self._stacked) > self.KEPT:
            self._stacked.popitem(last=False)
        keys = torch.arange(-(-longest // self._layout.part) * self._layout.part, device=device)
        count = -(-longest // step.block_size)
        blocks = step.block_table[torch.tensor([item.row for item in found], device=device), :count].long()
        own = torch.arange(count, device=device) * step.block_size < lengths[:, None]
        return DecodeGroup(
            served=found[0].served,
            side=found[0].request.side,
            requests=tuple(item.request for item in found),
            states=tuple(item.state for item in found),
            rows=_rows_of(found, device),
            places=self._layout.places(blocks * own, longest),
            mask=keys < lengths[:, None, None, None],
            edits=edits,
        )


_NO_BLOCKS = torch.empty(0, dtype=torch.long)


def _rows_of(found: Sequence[RowRange], device: torch.device) -> slice | Tensor:
    """Their rows in the step; a slice takes a view where a tensor takes a copy."""
    rows = [item.rows.start for item in found]
    first, stop = rows[0], rows[-1] + 1
    return slice(first, stop) if rows == list(range(first, stop)) else torch.tensor(rows, device=device)


def _alike(found: Sequence[RowRange]) -> list[list[RowRange]]:
    """Rows in sets whose numbers of keys are within a factor of two: all of a set are computed as the longest is."""
    sets: list[list[RowRange]] = []
    left = list(found)
    while left:
        longest = max(item.length for item in left)
        sets.append([item for item in left if 2 * item.length >= longest])
        left = [item for item in left if 2 * item.length < longest]
    return sets


def _read_on(request: GuardedRequest, served: ServedGuard, row: int, step: StepRows) -> GenerationState:
    """The generation of a request, which has taken in its rows of this step."""
    count = step.starts[row + 1] - step.starts[row]
    offset = step.lengths[row] - count
    if offset == 0:
        request.forget()
    state = request.begin(served.visual_token_ids, step.block_table.device)
    request.read(count, offset)
    if state.reading and state.active and served.beginning[request.side]:
        served.begin(request.tokens(offset, count, step.block_table.device), state)
    return state


def _edits_any(served: ServedGuard, state: GenerationState, count: int) -> bool:
    """Whether any method edits, or learns from, any of `count` rows of a prompt."""
    methods = [bound.method for bound in served.guard.methods if bound.method.edits_attention()]
    return any(method.whole_prompt is not None or state.rows(method.rows, count) is not None for method in methods)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """One attention layer of a step, its own work done.

    Attributes:
        index: number of the decoder layer.
        query: [T, H, D], key: [T, G, D], value: [T, G, D] of the rows of the step.
        output: [T, H, D], what vLLM's backend computed; edited rows are overwritten.
        cache: the layer's keys and values, as the backend keeps them.
        attention: attends over its blocks.
        scaling: factor of q.k. softcap: of the scores, or None. sinks: [H] sink logits, or None.
    """

    index: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    cache: Tensor
    attention: DecodeAttention
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def replaces(self, plan: StepPlan, rows: int) -> bool:
        """Whether all of the step's `rows` get new weights here, so that nobody has to compute their output before."""
        if plan.ranges or sum(len(group.requests) for group in plan.groups) < rows:
            return False
        edits = [self._edit_of(group) for group in plan.groups]
        return all(edit is not None and edit.changes_weights for edit in edits)

    def edit(self, plan: StepPlan) -> None:
        """Overwrite the rows that are edited in this layer."""
        for group in plan.groups:
            self._edit_group(group)
        for found in plan.ranges:
            layer = found.served.layers[found.request.side].get(self.index)
            if layer is not None:
                self._edit_range(found, layer)

    def _edit_group(self, group: DecodeGroup) -> None:
        found = self._edit_of(group)
        if found is None:
            return
        edit, rows = found.edit, group.rows
        if not edit.changes_weights and edit.self_mix is None and edit.head_scale is not None:
            self.output[rows] *= edit.head_scale[:, :, None].to(self.output.dtype)
            return
        call = BlockCall(
            query=self.query[rows].clone() if isinstance(rows, slice) else self.query[rows],
            own_value=None if edit.self_mix is None else self.value[rows],
            cache=self.cache,
            places=group.places,
            mask=group.mask,
            scaling=self.scaling,
            softcap=self.softcap,
            sinks=self.sinks,
        )
        self.output[rows] = self.attention.attend(call, found)

    def _edit_of(self, group: DecodeGroup) -> BlockEdit | None:
        """The edit of a group's rows in this layer, made once for as long as no more keys have to be read at once."""
        layer = group.served.layers[group.side].get(self.index)
        if layer is None:
            return None
        known = group.edits.get(self.index)
        if known is not None and known.keys != group.keys:
            known = group.edits[self.index] = BlockEdit.of(known.given, group.keys)
        if known is None and self.index not in group.edits:
            edits = [self._later_edit(request, state, layer) for request, state in zip(group.requests, group.states)]
            stacked = stack_edits(edits, self.query.shape[1])
            known = group.edits[self.index] = None if stacked is None else BlockEdit.of(stacked, group.keys)
        return known

    def _later_edit(self, request: GuardedRequest, state: GenerationState, layer: EditedLayer) -> AttentionEdit | None:
        """The edit of a request's decode steps, made once for each layer."""
        if self.index not in request.edits:
            groups, dim, heads = self.key.shape[1], self.key.shape[2], self.query.shape[1]
            key = self.key.new_zeros(()).expand(1, groups, state.length, dim)
            with layer.slot.guard.reading.running(state, state.findings):
                edit = edit_of_later_steps(layer.slot, state, layer.module, key, key, heads)
            request.edits[self.index] = edit
        return request.edits[self.index]

    def _edit_range(self, found: RowRange, layer: EditedLayer) -> None:
        rows, layout = found.rows, self.attention.layout
        if found.begins:
            key, value = (part[rows].transpose(0, 1)[None] for part in (self.key, self.value))
        else:
            key, value = (
                part[:, :, : found.length]
                for part in layout.read(self.cache, layout.places(found.blocks[None], found.length))
            )
        kwargs: dict[str, Any] = {"scaling": self.scaling}
        if self.softcap is not None:
            kwargs["softcap"] = self.softcap
        if self.sinks is not None:
            kwargs["s_aux"] = self.sinks
        query = self.query[rows].transpose(0, 1)[None]
        vars(layer.module)["num_key_value_groups"] = query.shape[1] // key.shape[1]
        given = FinishedInput(
            "sdpa", layer.module, query, key, value, found.mask, kwargs, self.output[None, rows].clone()
        )
        streams = found.request.streams
        if found.text is not None and streams is not None:
            streams.meet(self.output[None, found.text.stop - 1])
        with layer.slot.guard.reading.running(found.state, found.state.findings):
            edited, _ = attend(layer.slot, found.state, given)
        self.output[rows] = edited[0]
        scale = streams.scale(self.index) if found.text is not None and streams is not None else None
        if scale is not None:
            self.output[found.text] *= scale[:, :, None].to(self.output.dtype)
