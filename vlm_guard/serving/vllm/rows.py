"""Which request sits in which row of vLLM's batch, and what is known of it. One table for each engine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method.base import Sign
from vlm_guard.method.state import GenerationState, PromptTokens
from vlm_guard.serving.vllm.declaration import KEY
from vlm_guard.serving.vllm.step_streams import StepStreams

PAIR, SIDE, SEED, SHADOW = f"{KEY}_pair", f"{KEY}_side", f"{KEY}_seed", f"{KEY}_shadow"
"""What the scheduler writes into the arguments of both requests of a pair; requests from outside may not have it."""

BESIDE = f"{KEY}_beside"
"""The same for a request and the reading of its text alone, which share one step and nothing else."""

_SERIALS = count()
_KEPT = "_vlm_guard_requests"


@dataclass(eq=False)
class GuardedRequest:
    """A request with a method, in a row of the batch.

    Attributes:
        extra_args: of its sampling parameters.
        prompt: its token ids.
        answer: the ids of its answer when it entered the batch, or as far as vLLM has appended to this list since.
        state: its generation, once an attention backend has met it.
        edits: the edits of its decode steps by layer, where they stay the same.
        streams: its prompt and its text alone, where its method compares them.
        serial: a number that no other request has, and that changes when what was found in its prompt may have.
    """

    extra_args: Mapping[str, Any]
    prompt: Sequence[int]
    answer: Sequence[int]
    state: GenerationState | None = None
    edits: dict[int, AttentionEdit | None] = field(default_factory=dict)
    streams: StepStreams | None = None
    serial: int = field(default_factory=lambda: next(_SERIALS))

    @classmethod
    def of(cls, params: Any, prompt: Sequence[int], answer: Sequence[int]) -> "GuardedRequest":
        """The request with these sampling parameters and ids; what was known of it is known again.

        vLLM takes a request off its batch in a step that leaves it out, and adds it anew afterwards. So what methods
        have found in its prompt is kept with its parameters, as long as vLLM keeps these.
        """
        kept: dict[int, GuardedRequest] = vars(params).setdefault(_KEPT, {})
        known = kept.get(id(prompt))
        if known is None or known.prompt is not prompt:
            known = kept[id(prompt)] = cls(params.extra_args or {}, prompt, answer)
        known.answer = answer
        return known

    @property
    def side(self) -> Sign:
        """Which branch it is; without a second one the positive."""
        return self.extra_args.get(SIDE, "positive")

    @property
    def pair(self) -> str | None:
        """What its two branches have in common; None without a second branch."""
        return self.extra_args.get(PAIR)

    @property
    def beside(self) -> str | None:
        """What it has in common with the reading of its text alone; None without one."""
        return self.extra_args.get(BESIDE)

    @property
    def is_shadow(self) -> bool:
        """Whether it is the scheduler's, beside a request of somebody's."""
        return bool(self.extra_args.get(SHADOW))

    def begin(self, visual_token_ids: tuple[int, ...], device: torch.device | None = None) -> GenerationState:
        """Its generation, whose tensors are on `device`; made when it is first asked for."""
        if self.state is None:
            ids = torch.tensor([list(self.prompt)], device=device)
            prompt = PromptTokens.of(ids, None, visual_token_ids)
            self.state = GenerationState(visual_token_ids, prompt, self.side)
            if self.beside is not None and not self.is_shadow:
                self.streams = self.streams or StepStreams(len(self.prompt) - 1)
                self.state.streams = self.streams
        return self.state

    def forget(self) -> None:
        """It is read again from its first token on."""
        if self.state is not None:
            self.state = None
            self.edits.clear()
            self.serial = next(_SERIALS)

    def tokens(self, offset: int, count: int, device: torch.device | None = None) -> torch.Tensor:
        """[1, count] ids of its prompt, and then its answer, from `offset` on."""
        return torch.tensor([[*self.prompt, *self.answer][offset : offset + count]], device=device)

    def read(self, count: int, offset: int) -> None:
        """Its generation takes in `count` tokens from `offset` on."""
        state = self.state
        if state is None:
            raise RuntimeError("a request takes in tokens only after it was begun")
        if not state.reading and count == 1 and offset == state.length:
            state.continue_with(offset)
            return
        state.read(torch.zeros(1, 1, dtype=torch.long).expand(1, count), None, offset, None)
        self.edits.clear()
        self.serial = next(_SERIALS)


@dataclass(frozen=True, eq=False)
class PairedRows:
    """The rows of two branches that sample together.

    Attributes:
        asked: the row of the request itself. shadow: the row of its second branch.
        request: the request itself.
        other: the request of its second branch.
    """

    asked: int
    shadow: int
    request: GuardedRequest
    other: GuardedRequest

    @property
    def positive(self) -> int:
        """The row with the logits to move towards."""
        return self.asked if self.request.side == "positive" else self.shadow

    @property
    def negative(self) -> int:
        """The row with the logits to move away from."""
        return self.shadow if self.request.side == "positive" else self.asked


class RowTable:
    """The guarded requests by their row.

    Attributes:
        requests: by row.
        lengths: of every row of the running step, how many tokens it will have read.
        slots: by slot, where vLLM keeps requests in slots and gives them other rows in every step.
    """

    def __init__(self) -> None:
        self.requests: dict[int, GuardedRequest] = {}
        self.slots: dict[int, GuardedRequest] = {}
        self.lengths: Sequence[int] = ()
        self._pairs: list[PairedRows] | None = None

    def change(self) -> None:
        """Rows have changed."""
        self._pairs = None

    def clear(self) -> None:
        """Nobody is here any more."""
        self.requests.clear()
        self.slots.clear()
        self.change()

    def arrange(self, slots: Sequence[int]) -> None:
        """The running step has these slots in its rows."""
        self.requests = {row: self.slots[slot] for row, slot in enumerate(slots) if slot in self.slots}
        self.change()

    def move(self, source: int, target: int, swap: bool) -> None:
        """A row was moved to another place, or two have swapped theirs."""
        first, second = self.requests.pop(source, None), self.requests.pop(target, None)
        if first is not None:
            self.requests[target] = first
        if swap and second is not None:
            self.requests[source] = second
        self.change()

    def answered(self, row: int, request: GuardedRequest) -> int:
        """How many tokens of its answer a request has read at the end of the running step."""
        return self.lengths[row] - len(request.prompt)

    def text_row(self, request: GuardedRequest) -> int:
        """The row in which the text of a request is read alone.

        Raises:
            RuntimeError: it is not in the batch, which must never be.
        """
        for row, other in self.requests.items():
            if other.is_shadow and other.beside == request.beside:
                return row
        raise RuntimeError("a prompt was read without its text beside it")

    def pairs(self, rows: int) -> Iterator[PairedRows]:
        """The pairs with both halves among the first `rows` rows that get a token in the running step."""
        if self._pairs is None:
            self._pairs = list(self._found())
        for pair in self._pairs:
            if self._answers(pair.asked, rows, pair.request) and self._answers(pair.shadow, rows, pair.other):
                yield pair

    def _answers(self, row: int, rows: int, request: GuardedRequest) -> bool:
        """Whether a row has read all it has, so that its logits are those of its next token."""
        known = len(request.prompt) + len(request.answer)
        return row < rows and row < len(self.lengths) and self.lengths[row] >= known

    def _found(self) -> Iterator[PairedRows]:
        halves: dict[str, dict[bool, tuple[int, GuardedRequest]]] = {}
        for row, request in self.requests.items():
            if request.pair is not None:
                halves.setdefault(request.pair, {})[request.is_shadow] = (row, request)
        for both in halves.values():
            if len(both) == 2:
                (asked, request), (shadow, other) = both[False], both[True]
                yield PairedRows(asked, shadow, request, other)


_TABLES: dict[str, RowTable] = {}


def table_of(engine: str) -> RowTable:
    """The table of an engine of this process, by its `instance_id`; what an engine left in its rows is no other's."""
    return _TABLES.setdefault(engine, RowTable())
