"""Where the gates of a guard's methods are open: remembered from one forward pass for the next.

A method that acts inside the model is gated by the distribution that a token was chosen from, which the pass before
has computed. So after every pass it is written down, for the position behind it and for each row, which gates are
open; the next pass reads it. Beams move rows about in the cache, and what is written down moves with them.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.method.gate import Gate
from vlm_guard.method.hooks import acts_in_model
from vlm_guard.runtime.installation import put_on

if TYPE_CHECKING:
    from vlm_guard.method.attention_calls import BoundMethod
    from vlm_guard.method.state import GenerationState
    from vlm_guard.runtime.reading import RunningPass

Bound = tuple["BoundMethod", ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedPart:
    """The rows and positions of a pass at which the same methods act.

    Attributes:
        processors: these methods.
        where: [B, Q] bool on the CPU; None for everywhere.
    """

    processors: Bound
    where: Tensor | None


@dataclass(eq=False)
class _Record:
    """What is known of one generation.

    Attributes:
        opened: by method and position, whether its gate is open there in each row.
        tokens: [B, T] read by the last pass of a generation that keeps no cache.
        parts: what was made of it for the running pass, by the methods and the number of positions.
    """

    opened: dict[str, dict[int, list[bool]]] = field(default_factory=dict)
    tokens: Tensor | None = None
    parts: dict[tuple[Bound, int], tuple[GatedPart, ...]] = field(default_factory=dict)


class Gates:
    """The gates of the methods that act inside the model.

    A method that edits only the second branch of its own contrast is left out: its contrast is gated, and its branch
    must read what it would have read without a gate.

    Args:
        methods: of the guard.
    """

    def __init__(self, methods: "Sequence[BoundMethod]") -> None:
        self._gates: dict[str, Gate] = {}
        for bound in methods:
            gate = Gate.read(bound.method.gate)
            if gate is not None and acts_in_model(bound.method) and bound.method.edited_branch == "positive":
                self._gates[bound.method.name] = gate
        self._records: weakref.WeakKeyDictionary[GenerationState, _Record] = weakref.WeakKeyDictionary()
        self._followed: weakref.WeakKeyDictionary[Any, list[weakref.ref[GenerationState]]] = weakref.WeakKeyDictionary()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._gates)

    def holds(self, method: str) -> bool:
        """Whether a method has a gate that counts inside the model."""
        return method in self._gates

    # -- before and after a pass ------------------------------------------------------------------------------

    def begin(self, running: "RunningPass", input_ids: Tensor, cache: Any) -> None:
        """A pass begins, and it is known whose tokens it reads.

        Raises:
            ValueError: rows have moved about in a generation without a cache.
        """
        states = _states(running)
        for state in states:
            record = self._record(state)
            record.parts.clear()
            if cache is None:
                self._check_rows(record, input_ids)
                record.tokens = input_ids
        if cache is not None and hasattr(cache, "reorder_cache"):
            self._follow(cache, states)

    def finish(self, running: "RunningPass", output: Any) -> None:
        """It has gone well: which gates are open behind its last tokens.

        Raises:
            ValueError: its output has no logits by that name.
        """
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"the gate of {', '.join(self._gates)} reads the logits of every pass; call the model with "
                "return_dict=True, or leave the gate out"
            )
        last = logits[:, -1]
        # One wait for the device a pass and method, as the loops of `generate` have to look at their tokens anyway.
        found = {name: gate.is_open(last).tolist() for name, gate in self._gates.items()}
        if running.groups is None:
            parts = [] if running.state is None else [(running.state, slice(None))]
        else:
            parts = [(group.state, slice(group.first, group.stop)) for group in running.groups]
        for state, rows in parts:
            if state.only is None and state.active:
                opened = self._record(state).opened
                for name, flags in found.items():
                    # Rows behind those of the generation are twins that a method reads beside it.
                    opened.setdefault(name, {})[state.length] = flags[rows][: state.real.shape[0]]

    # -- in a pass --------------------------------------------------------------------------------------------

    def parts(self, processors: Bound, state: "GenerationState", count: int, skipped: int = 0) -> tuple[GatedPart, ...]:
        """Which of `processors` act where, for the last `count` = Q positions of the running pass.

        Args:
            processors: methods that edit the same thing.
            state: of the generation.
            count: how many positions a layer computes.
            skipped: how many first positions of the pass it leaves out.

        Returns:
            The parts, which cover every row and position once; only one where all rows agree.

        Raises:
            ValueError: the pass reads several tokens of an answer of which nobody has predicted the later ones yet.
        """
        record = self._record(state)
        key = (processors, count)
        if key not in record.parts:
            record.parts[key] = self._make_parts(record, processors, state, count, skipped)
        return record.parts[key]

    def where(self, bound: "BoundMethod", state: "GenerationState", count: int) -> Tensor | None:
        """[B, Q] bool on the CPU, where the gate of a method is open; None for everywhere."""
        if not self.holds(bound.method.name):
            return None
        acting = [part for part in self.parts((bound,), state, count, state.skipped(count)) if part.processors]
        if not acting:
            return torch.zeros(state.real.shape[0], count, dtype=torch.bool)
        return acting[0].where

    def _make_parts(
        self, record: _Record, processors: Bound, state: "GenerationState", count: int, skipped: int
    ) -> tuple[GatedPart, ...]:
        gated = [bound for bound in processors if self.holds(bound.method.name)]
        first, length = state.offset + skipped, state.prompt_length
        # What is read before anything was predicted is the prompt.
        told = state.length if length is None or (state.reading and state.prompt is None) else length
        answered = range(max(first, told), first + count)
        if not gated or not answered:
            return (GatedPart(processors=processors, where=None),)
        batch = state.real.shape[0]
        flags = torch.ones(len(gated), batch, count, dtype=torch.bool)
        for row, bound in enumerate(gated):
            known = record.opened.get(bound.method.name, {})
            for position in answered:
                if position not in known:
                    raise ValueError(
                        f"the gate of {bound.method.name} decides from one token to the next, but this pass reads "
                        f"{count} tokens of an answer at once (labels, assisted decoding, a second branch that "
                        f"catches up); leave out gate={bound.method.gate!r} there"
                    )
                flags[row, :, position - first] = torch.tensor(known[position])
        parts = []
        for chosen in flags.flatten(1).unique(dim=1).T.tolist():
            closed = {bound for bound, open_ in zip(gated, chosen) if not open_}
            where = (flags == torch.tensor(chosen)[:, None, None]).all(0)
            acting = tuple(bound for bound in processors if bound not in closed)
            parts.append(GatedPart(processors=acting, where=None if bool(where.all()) else where))
        return tuple(parts)

    # -- rows that move ---------------------------------------------------------------------------------------

    def _record(self, state: "GenerationState") -> _Record:
        record = self._records.get(state)
        if record is None:
            record = self._records[state] = _Record()
        return record

    def _check_rows(self, record: _Record, input_ids: Tensor) -> None:
        earlier = record.tokens
        if earlier is None or not record.opened or earlier.shape[1] >= input_ids.shape[1]:
            return
        if not torch.equal(earlier, input_ids[:, : earlier.shape[1]]):
            raise ValueError(
                f"the gate of {', '.join(self._gates)} cannot follow beams without a cache, which tells how their rows "
                "move; leave out use_cache=False, or the gate"
            )

    def _follow(self, cache: Any, states: "list[GenerationState]") -> None:
        """From now on, what is known of these generations moves with the rows of the cache."""
        if cache in self._followed:
            self._followed[cache] = [weakref.ref(state) for state in states]
            return
        self._followed[cache] = [weakref.ref(state) for state in states]
        # A cache that refers to itself would hold its memory until the garbage collector comes by.
        own, of_class, owner = vars(cache).get("reorder_cache"), type(cache).reorder_cache, weakref.ref(cache)

        def reorder_all(beam_idx: Tensor) -> None:
            kept = owner()
            if kept is None:
                return
            for known in self._followed.get(kept, ()):
                state = known()
                if state is not None:
                    self._move(state, beam_idx.tolist())
            if own is None:
                of_class(kept, beam_idx)
            else:
                own(beam_idx)

        put_on(cache, "reorder_cache", reorder_all)

    def _move(self, state: "GenerationState", rows: list[int]) -> None:
        for positions in self._record(state).opened.values():
            last = max(positions, default=None)
            if last is not None and len(positions[last]) == len(rows):
                # Of a cached generation no earlier position is asked for again.
                kept = positions[last]
                positions.clear()
                positions[last] = [kept[row] for row in rows]


def _states(running: "RunningPass") -> "list[GenerationState]":
    if running.groups is not None:
        return [group.state for group in running.groups]
    return [] if running.state is None else [running.state]
