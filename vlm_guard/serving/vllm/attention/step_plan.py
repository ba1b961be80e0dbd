"""Which rows of a step are guarded, and how: request by request, or those of several requests together.

Decoded rows of requests of one offer go together where the edits of its methods stay the same through an answer, or
where its methods can be asked about several rows at once.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_guard.method.base import Sign
from vlm_guard.method.state import GenerationState
from vlm_guard.serving.vllm.attention.block_attention import BlockEdit
from vlm_guard.serving.vllm.attention.block_layout import BlockLayout
from vlm_guard.serving.vllm.attention.joint_rows import JointState
from vlm_guard.serving.vllm.attention.observed_rows import LooksBetweenLayers, ObservedRows
from vlm_guard.serving.vllm.grounding.lens_keys import GRIDS, key_of
from vlm_guard.serving.vllm.grounding.lens_rows import LensPlanner, LensRows, StepPart
from vlm_guard.serving.vllm.rows import GuardedRequest, RowTable
from vlm_guard.serving.vllm.served_guards import ServedGuard, ServedGuards

PLAN = "vlm_guard_plan"
"""The attribute of vLLM's description of a step that holds what is guarded in it."""


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
        steady: by layer, the stacked edits of methods whose edits stay, kept for later steps; None where there is none.
        joint: the generation of all of them, where methods are asked anew at every step.
        edits: by layer, the edits of this step with those of these methods.
    """

    served: ServedGuard
    side: Sign
    requests: tuple[GuardedRequest, ...]
    states: tuple[GenerationState, ...]
    rows: slice | Tensor
    places: Tensor
    mask: Tensor
    steady: dict[int, BlockEdit | None]
    joint: JointState | None
    edits: dict[int, BlockEdit | None] = field(default_factory=dict)

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
        observed: rows of prompts that somebody looks at between the layers.
    """

    ranges: Sequence[RowRange]
    groups: Sequence[DecodeGroup]
    observed: Sequence[LooksBetweenLayers]


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


@dataclass(frozen=True, eq=False)
class _KnownGroup:
    """What stays of requests for as long as they decode together.

    Attributes:
        steady: see `DecodeGroup`. joint: see there.
    """

    steady: dict[int, BlockEdit | None]
    joint: JointState | None

    @classmethod
    def of(cls, found: Sequence[RowRange]) -> "_KnownGroup":
        """That of one row each of several requests of an offer."""
        asked = found[0].served.joint[found[0].request.side]
        return cls({}, JointState([item.state for item in found], asked) if asked else None)


class StepPlanner:
    """Makes the plan of every step.

    Args:
        served: the guards.
        table: which request is in which row.
        layout: of the cache's blocks.
        lens: finds the prompts whose hidden states are kept; None where none ever are.
    """

    KEPT = 64
    """So many sets of requests that decode together are remembered."""

    def __init__(
        self, served: ServedGuards, table: RowTable, layout: BlockLayout, lens: LensPlanner | None = None
    ) -> None:
        self._served = served
        self._table = table
        self._layout = layout
        self._lens = lens
        self._known: OrderedDict[tuple[int, ...], _KnownGroup] = OrderedDict()

    def plan(self, step: StepRows) -> StepPlan | None:
        """The plan of a step; None where nothing is guarded in it."""
        ranges: list[RowRange] = []
        observed: list[LooksBetweenLayers] = []
        decoded: dict[tuple[str, Sign], list[RowRange]] = {}
        for row, request in sorted(self._table.requests.items()):
            if row >= len(step.lengths) or step.starts[row] == step.starts[row + 1]:
                continue
            kept = self._kept_rows(request, row, step)
            if kept is not None:
                observed.append(kept)
            served = self._served.asked(request.extra_args)
            if served is None:
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

    def _kept_rows(self, request: GuardedRequest, row: int, step: StepRows) -> LensRows | None:
        """The rows of a request in this step whose hidden states are kept; None where none are."""
        key = key_of(request.extra_args)
        if self._lens is None or key is None:
            return None
        count = step.starts[row + 1] - step.starts[row]
        offset, device = step.lengths[row] - count, step.block_table.device
        part = StepPart(first=step.starts[row], count=count, offset=offset, device=device)
        return self._lens.rows(key, request.prompt, request.extra_args.get(GRIDS, ()), part)

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
        together = single and served.decodes_together[request.side]
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
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _KnownGroup.of(found)
        self._known.move_to_end(key)
        while len(self._known) > self.KEPT:
            self._known.popitem(last=False)
        if known.joint is not None:
            known.joint.continue_with(longest - 1)
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
            steady=known.steady,
            joint=known.joint,
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
