"""The hooks of a guard on forward passes of its model.

Families that hand embeddings to an inner language model (BLIP-2) are followed there; the ids of the embeddings are
known from the call of `generate`, or from the pass of the whole model around the inner one.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import Cache

from vlm_guard.method.attention_calls import BoundMethod
from vlm_guard.method.early_exit import without_double_prompt
from vlm_guard.method.forward_call import ForwardCall
from vlm_guard.method.state import PromptTokens
from vlm_guard.runtime.attention_switch import follow_attention
from vlm_guard.runtime.graph_break import kept_out
from vlm_guard.runtime.reading import RunningPass
from vlm_guard.runtime.refused_calls import refuse_forward

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

Undo = Callable[[], Any]
# Labels with this value are no targets; they mark the prompt.
IGNORED = -100


def follow_forwards(guard: "Guard", begins: bool) -> list[Undo]:
    """Hook every forward pass of the model that generates to the guard's reading.

    Args:
        guard: whose model it is.
        begins: whether a method changes the inputs of passes that read a prompt.

    Returns:
        What undoes it.
    """
    outer, inner = guard.target.model, guard.target.architecture.generator
    reading = _ForwardReading(guard)
    hooks = [
        inner.register_forward_pre_hook(_Hook(guard, kept_out(reading.before)), with_kwargs=True),
        inner.register_forward_hook(_Hook(guard, kept_out(reading.after)), always_call=True, with_kwargs=True),
    ]
    if begins:
        hooks.append(inner.register_forward_pre_hook(_Hook(guard, kept_out(reading.begin)), with_kwargs=True))
    if inner is not outer:
        hooks.append(outer.register_forward_pre_hook(reading.enter_whole, with_kwargs=True))
        hooks.append(outer.register_forward_hook(reading.leave_whole, always_call=True))
    return [hook.remove for hook in hooks]


def _tells_answers(bound: BoundMethod) -> bool:
    """Whether a method treats the rows of an answer otherwise than those of a prompt."""
    method = bound.method
    attention = method.edits_attention() and method.rows == "answer"
    hidden = method.overrides("edit_hidden") and method.hidden_rows == "answer"
    return method.contrasts() or method.whole_prompt is not None or attention or hidden


def _cache_of(output: Any) -> Cache | None:
    """The cache among the outputs of a forward pass, if there is one."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    return next((value for value in values if isinstance(value, Cache)), None)


@dataclass(frozen=True, eq=False)
class _Hook:
    """A hook that stays out of compiled graphs. Copying or pickling it comes to the guard, which says why not."""

    guard: "Guard"
    run: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


class _ForwardReading:
    """What happens before and after every forward pass.

    Attributes:
        guard: the guard.
        whole: ids of the pass of the whole model that is running around an inner one, if any.
        around: that pass.
    """

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        self.whole: Tensor | None = None
        self.around: RunningPass | None = None

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass of the model that generates begins: find whose tokens it reads, and take them in."""
        reading = self.guard.reading
        running = reading.enter()
        if reading.is_paused:
            return
        if self.around is not None:
            # The pass began with the whole model, whose vision tower has been seen by now.
            running.findings = self.around.findings
        named = self.named(kwargs)
        self._read(running, module, args, named)
        if self.guard.contrasting is not None:
            self.guard.contrasting.begin(running, named)

    def _read(self, running: RunningPass, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        guard, reading = self.guard, self.guard.reading
        refuse_forward(guard, module, kwargs)
        follow_attention()
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("past_key_values")
        if input_ids is None:
            raise ValueError(
                "a guarded model finds the visual tokens in input_ids, but was called with inputs_embeds only; "
                "pass input_ids, or remove the guard for this call"
            )
        if guard.decoding.follows(running, cache, input_ids):
            return
        offset = 0 if cache is None else int(cache.get_seq_length())
        groups = reading.joint(cache)
        if groups is not None:
            running.groups, running.findings = groups, reading.findings
            for group in groups:
                group.state.continue_with(offset - group.shift)
                if group.state.side == "positive":
                    running.state = reading.last = group.state
            guard.observers.end()
            self._begin_gates(running, input_ids, cache)
            return
        labelled = self._labelled(input_ids, kwargs) if offset == 0 else None
        state = reading.belongs(input_ids, cache, offset, labelled)
        length = state.prompt_length
        if offset and input_ids.shape[1] == 1 and length is not None and offset >= length:
            state.continue_with(offset)
            guard.observers.end()
            self._begin_gates(running, input_ids, cache)
            return
        guard.placement.check()
        state.compiled = guard.decoding.asked
        guard.observers.begin()
        reading.take_in(state, input_ids, kwargs.get("attention_mask"), offset, cache)
        self._begin_gates(running, input_ids, cache)

    def _begin_gates(self, running: RunningPass, input_ids: Tensor, cache: Any) -> None:
        if self.guard.gates:
            self.guard.gates.begin(running, input_ids, cache)

    def _labelled(self, input_ids: Tensor, kwargs: dict[str, Any]) -> PromptTokens | None:
        """The prompt of a pass over prompt and answer, where its labels tell it.

        Raises:
            ValueError: the answers of a batch begin at different positions, and a method treats them unlike prompts.
        """
        labels = kwargs.get("labels")
        if not isinstance(labels, Tensor) or labels.shape != input_ids.shape:
            return None
        answered = labels != IGNORED
        length = int(answered.any(0).to(labels.dtype).argmax()) if bool(answered.any()) else 0
        if not 0 < length < labels.shape[1]:
            return None
        if bool((answered.any(-1) & ~answered[:, length]).any()) and any(map(_tells_answers, self.guard.methods)):
            raise ValueError(
                "the answers that `labels` mark begin at different positions in the rows of this batch; pad the "
                "prompts on their left so that they end together, or pass one row at a time"
            )
        mask = kwargs.get("attention_mask")
        own = mask[:, :length] if isinstance(mask, Tensor) and mask.shape == input_ids.shape else None
        return PromptTokens.of(input_ids[:, :length], own, self.guard.target.architecture.visual_token_ids)

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """It has been read; methods may change its inputs."""
        running = self.guard.reading.current
        state = None if running is None else running.state
        if state is None or not state.reading or not state.active:
            return None
        inputs = dict(self.named(kwargs))
        if args:
            inputs["input_ids"], args = args[0], args[1:]
        for bound in self.guard.methods:
            if bound.method.edited_branch == state.side:
                call = ForwardCall(guard=self.guard, inputs=inputs, state=state, prepared=bound.prepared)
                bound.method.begin_forward(call)
        return args, without_double_prompt(inputs)

    def after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """The pass has ended, or failed: then there is no output."""
        with self.guard.reading.holding():
            running = self.guard.reading.leave()
            if running is None:
                return None
            if output is not None:
                self._see(running, output)
            if self.guard.contrasting is None:
                return None
            given = {**kwargs, "input_ids": args[0]} if args else kwargs
            return self.guard.contrasting.finish(running, given, output)

    def _see(self, running: RunningPass, output: Any) -> None:
        """What is to be seen of a pass that has gone well."""
        state = running.state
        if self.guard.gates:
            self.guard.gates.finish(running, output)
        if state is not None and state.cache is None and not running.open_call:
            # A decoding loop over `model(...)` goes on with the cache that its first pass has made.
            self.guard.reading.caches.remember(_cache_of(output), state)
        if state is not None and running.groups is None and state.reading and state.active and state.only is None:
            self.guard.coverage.check(state, running.findings, state.length - state.offset)

    def enter_whole(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass of the whole model around an inner one begins."""
        self.around = self.guard.reading.enter()
        self.whole = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments.get("input_ids")

    def leave_whole(self, module: nn.Module, args: tuple, output: Any) -> None:
        """It has ended, or failed."""
        self.whole = self.around = None
        self.guard.reading.leave()

    def named(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the model is given, with the ids of its embeddings where it is an inner one and they are known."""
        embeddings, architecture = kwargs.get("inputs_embeds"), self.guard.target.architecture
        if not isinstance(embeddings, Tensor) or not architecture.entry.generator:
            return kwargs
        ids, prompt = self.whole, self.guard.reading.prompt
        if ids is None and prompt is not None and prompt.input_ids is not None:
            ids = prompt.expanded(embeddings.shape[0]).input_ids
        cache = kwargs.get("past_key_values")
        first = 0 if cache is None else int(cache.get_seq_length())
        ids = None if ids is None else ids[:, first : first + embeddings.shape[1]]
        return kwargs if ids is None or ids.shape != embeddings.shape[:2] else {**kwargs, "input_ids": ids}
