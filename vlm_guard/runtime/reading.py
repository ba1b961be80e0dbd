"""The running generation of a guarded model. It answers one question: whose tokens does this forward pass read?

A logits processor may ask the same model about something else, a streamer may be told to, a conversation goes on with
the cache of its last turn, a model drafts for itself, two branches share a pass. So nothing is taken for granted from
one pass to the next. A pass belongs to

  the generation whose cache it is given, if that cache holds tokens;
  the innermost open call (`generate`, or a contrast branch that reads its prompt) whose prompt it begins with;
  itself otherwise: a generation of its own, such as `model(**inputs)` or a decoding loop over `model(...)`.

While a pass runs it is `Reading.current`; attention outside of any pass is left as it is.
"""

import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlm_guard.method.base import Sign
from vlm_guard.method.state import GenerationState, PromptTokens
from vlm_guard.runtime.cached_prompt import kept_methods, refuse_cached_part
from vlm_guard.runtime.known_caches import KnownCaches

if TYPE_CHECKING:
    from vlm_guard.method.attention_calls import BoundMethod
    from vlm_guard.method.target import GuardTarget
    from vlm_guard.runtime.branch_rows import RowGroup
    from vlm_guard.runtime.decode_step import DecodeStep
    from vlm_guard.runtime.trace import AttentionTrace

Findings = dict[str, SimpleNamespace]
# Among the findings of a generation: which methods have seen its pictures pass. No method has such a name.
_TOWER = "vision tower"


@dataclass(eq=False)
class Call:
    """An open call whose forward passes come to the model: `generate`, or one branch of it.

    Attributes:
        prompt: the tokens it reads; None while or where they are not known.
        side: the contrast branch it is.
        findings: what methods find out during it, apart from any decoder layer.
        state: its generation, once its first pass has begun.
    """

    prompt: PromptTokens | None = None
    side: Sign = "positive"
    findings: Findings = field(default_factory=dict)
    state: GenerationState | None = None


def methods_at_tower(findings: Findings) -> frozenset[str]:
    """The methods under whose eyes pictures have passed the vision tower."""
    return frozenset(getattr(findings.get(_TOWER), "methods", ()))


@dataclass(eq=False)
class RunningPass:
    """A forward pass of the guarded model, while it runs.

    Attributes:
        state: the generation whose tokens it reads; None for a pass that is left as it is.
        groups: the branches whose rows it decodes together, or None.
        findings: of its generation.
        of_call: whether it runs inside an open call.
        foreign: whether it does not belong to that call.
    """

    state: GenerationState | None = None
    groups: "tuple[RowGroup, ...] | None" = None
    findings: Findings = field(default_factory=dict)
    of_call: bool = False
    foreign: bool = False

    @property
    def open_call(self) -> bool:
        """Whether it belongs to an open call."""
        return self.of_call and not self.foreign


class Reading:
    """The passes of one guard's model.

    Args:
        target: the model with its shape.
        methods: the methods of the guard.

    Attributes:
        current: the pass that is running, or None.
        last: the state of the last generation; None before the first.
        step: the compiled decode step that is running, or None.
        tracer: the record of attention that is being made, or None.
        caches: the generations of the caches that were filled under the guard.
    """

    def __init__(self, target: "GuardTarget", methods: "Sequence[BoundMethod]") -> None:
        self.target = target
        self.methods = methods
        self.current: RunningPass | None = None
        self.last: GenerationState | None = None
        self.step: DecodeStep | None = None
        self.tracer: AttentionTrace | None = None
        self.caches = KnownCaches()
        # One generation at a time. Reentrant, as callbacks of a generation and methods run passes of their own inside.
        self._lock = threading.RLock()
        self._calls: list[Call] = []
        self._passes: list[RunningPass] = []
        self._joint: weakref.WeakKeyDictionary[Any, tuple[RowGroup, ...]] = weakref.WeakKeyDictionary()
        self._findings: Findings = {}
        self._probes = 0
        self._pauses = 0
        self._said: set[str] = set()

    # -- calls ------------------------------------------------------------------------------------------------

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, no other thread's generation runs on this model; a running one is waited for."""
        with self._lock:
            yield

    @contextmanager
    def generating(self) -> Iterator[Call]:
        """Forward passes inside may belong to this call of `generate`, whose prompt the caller fills in."""
        if not self._calls:
            self._drop_passes(0)
        call, depth = Call(), len(self._passes)
        self._calls.append(call)
        try:
            yield call
        finally:
            self._calls.remove(call)
            self._drop_passes(depth)
            self._findings = call.findings
            if call.state is not None:
                self.last = call.state

    @contextmanager
    def branch(self, side: Sign, prompt: PromptTokens | None, state: GenerationState | None) -> Iterator[Call]:
        """Forward passes inside belong to one contrast branch and its `state` (None: it begins)."""
        findings = self._calls[-1].findings if self._calls else {}
        call = Call(prompt=prompt, side=side, findings=findings, state=state)
        self._calls.append(call)
        try:
            yield call
        finally:
            self._calls.remove(call)

    @contextmanager
    def running(self, state: GenerationState | None, findings: Findings | None = None) -> Iterator[None]:
        """What runs inside reads the tokens of `state`, whatever pass runs around it; None leaves it as it is.

        Args:
            state: the generation.
            findings: what methods find out meanwhile; by default with what they have found out around it.
        """
        known = self.findings if findings is None else findings
        kept, self.current = self.current, RunningPass(state=state, findings=known)
        try:
            yield
        finally:
            self.current = kept

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, passes are left as they are, and other threads wait."""
        with self._lock:
            self._pauses += 1
            kept = self.last, self._findings, self.current
            self.current = None
            try:
                yield
            finally:
                self._pauses -= 1
                self.last, self._findings, self.current = kept

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Inside, the vision tower runs for a method or a branch; methods that look at given images leave it alone."""
        self._probes += 1
        try:
            yield
        finally:
            self._probes -= 1

    @property
    def prompt(self) -> PromptTokens | None:
        """Of the innermost open call, if it is known."""
        return self._calls[-1].prompt if self._calls else None

    @property
    def is_probing(self) -> bool:
        """Whether the vision tower runs for a method or a branch."""
        return self._probes > 0

    @property
    def is_paused(self) -> bool:
        """Whether the guard stands aside. Meaningful to who holds the reading."""
        return self._pauses > 0

    @property
    def is_generating(self) -> bool:
        """Whether a call is open. Meaningful to who holds the reading."""
        return bool(self._calls)

    @property
    def findings(self) -> Findings:
        """Of the running pass, of the innermost open call, or of the last one."""
        if self.current is not None and (self.current.foreign or not self._calls):
            return self.current.findings
        return self._calls[-1].findings if self._calls else self._findings

    # -- passes -----------------------------------------------------------------------------------------------

    def enter(self) -> RunningPass:
        """A forward pass of the model begins; until it is known whose it is, it is left as it is."""
        self._lock.acquire()
        running = RunningPass(of_call=bool(self._calls))
        self._passes.append(running)
        self.current = running
        return running

    def leave(self) -> RunningPass | None:
        """It has ended, or failed."""
        if not self._passes:
            return None
        running = self._passes.pop()
        self.current = self._passes[-1] if self._passes else None
        if not self._calls:
            self._findings = running.findings
        self._lock.release()
        return running

    def belongs(self, input_ids: Tensor, cache: Any, offset: int, labelled: PromptTokens | None) -> GenerationState:
        """Find whose tokens the running pass reads.

        Args:
            input_ids: [N, Q] of the pass.
            cache: its `past_key_values`, or None.
            offset: how many tokens the cache holds.
            labelled: the prompt that the labels of a pass tell, if any.

        Returns:
            The generation, which is also written down in the running pass.

        Raises:
            ValueError: nobody knows what its cache holds, or a method cannot go on with it.
        """
        running = self._passes[-1]
        call = self._calls[-1] if self._calls else None
        if offset:
            state = self._continue(running, call, input_ids, cache, offset)
        elif call is not None and self._begins(call, input_ids, cache):
            if call.state is None:
                state = GenerationState(self.target.architecture.visual_token_ids, call.prompt, call.side)
                state.findings = call.findings
                call.state = state
            state = running.state = call.state
            running.findings = call.findings
        else:
            running.foreign = call is not None
            state = GenerationState(self.target.architecture.visual_token_ids, labelled)
            running.state, state.findings = state, running.findings
        self.last = state
        return state

    def _continue(
        self, running: RunningPass, call: Call | None, input_ids: Tensor, cache: Any, offset: int
    ) -> GenerationState:
        """A pass goes on with a cache that holds `offset` tokens; the generation it belongs to."""
        known = None if call is None else call.state
        if known is None or known.cache is None or known.cache() is not cache:
            known = self.caches.state_of(cache)
        state, prompt = known, None if call is None else call.prompt
        owned = call is not None and (known is call.state or (call.state is None and _goes_on(call, input_ids, offset)))
        length = known.prompt_length
        if offset < known.length and length is not None and offset < length:
            state = known.cropped(offset, kept_methods(self.methods))
        if owned and prompt is not None and state.prompt is not prompt:
            state.prompt = prompt
        if call is not None and owned:
            call.state, state.findings = state, call.findings
        running.foreign = call is not None and not owned
        running.state, running.findings = state, state.findings
        return state

    @staticmethod
    def _begins(call: Call, input_ids: Tensor, cache: Any) -> bool:
        """Whether a pass without earlier tokens begins a call, or goes on with one that keeps no cache."""
        if call.state is not None and (cache is not None or call.state.cache is not None):
            return False
        return call.prompt is None or call.prompt.begins(input_ids)

    def take_in(self, state: GenerationState, input_ids: Tensor, attention_mask: Any, offset: int, cache: Any) -> None:
        """The running pass reads these tokens of its generation `state`.

        Raises:
            ValueError: a method cannot go on with what the cache holds.
        """
        state.read(input_ids, attention_mask, offset, cache)
        self.caches.remember(cache, state)
        if state.reading and offset:
            refuse_cached_part(self.methods, state)
        if state.reading and not state.active and state.side == "positive" and not self._passes[-1].foreign:
            self.say("the prompt has no visual token: the guard does nothing for it")

    # -- branches that share passes ---------------------------------------------------------------------------

    def join(self, cache: Any, groups: "tuple[RowGroup, ...]") -> None:
        """From now on every pass with `cache` decodes the rows of these branches."""
        self._joint[cache] = groups

    def part(self, cache: Any, state: GenerationState | None) -> None:
        """The branches are done; what is left is `state`."""
        if cache is not None:
            self._joint.pop(cache, None)
        self.last = state
        if self._calls:
            self._calls[-1].state = state

    def joint(self, cache: Any) -> "tuple[RowGroup, ...] | None":
        """The branches that share this cache, or None."""
        return self._joint.get(cache) if self._joint and cache is not None else None

    def saw_tower(self, method: str) -> None:
        """Pictures of the running generation have passed the vision tower under a method's eyes."""
        vars(self.findings.setdefault(_TOWER, SimpleNamespace())).setdefault("methods", set()).add(method)

    # -- words ------------------------------------------------------------------------------------------------

    def say(self, sentence: str) -> None:
        """Warn, once in the life of a guard."""
        if sentence not in self._said:
            self._said.add(sentence)
            warnings.warn(sentence, stacklevel=2)

    def forget(self) -> None:
        """The model is given back."""
        self.last = None
        self._findings = {}
        self.caches.forget()
        self._joint.clear()

    def _drop_passes(self, depth: int) -> None:
        """Passes that were left by an exception which hooks do not see (a keyboard interrupt)."""
        while len(self._passes) > depth:
            self.leave()


def _goes_on(call: Call, input_ids: Tensor, offset: int) -> bool:
    """Whether tokens at `offset` of a cache can be the first that a call reads."""
    prompt = call.prompt
    if prompt is None:
        return True
    return offset < prompt.length and input_ids.shape[0] % prompt.visual.shape[0] == 0
