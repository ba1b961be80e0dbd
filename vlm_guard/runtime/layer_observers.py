"""Showing methods the hidden states that enter the decoder layers, while a prompt is read and at no other time."""

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from vlm_guard.method.attention_calls import BoundMethod, HiddenCall
from vlm_guard.runtime.graph_break import kept_out

if TYPE_CHECKING:
    from vlm_guard.guard import Guard


class LayerObservers:
    """The hooks of one guard on its decoder layers.

    Args:
        guard: the guard; its methods are known already.
    """

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        observers = [bound for bound in guard.methods if bound.method.observes_hidden]
        wanted = [
            (entry, [bound for bound in observers if entry.index in bound.layers])
            for entry in guard.target.architecture.layers
        ]
        self._wanted = [(entry, bounds) for entry, bounds in wanted if bounds]
        self._handles: list[Any] = []

    def __bool__(self) -> bool:
        """Whether any method observes."""
        return bool(self._wanted)

    def begin(self) -> None:
        """A prompt is read: put the hooks on the layers, if they are not there."""
        if self._handles:
            return
        for entry, bounds in self._wanted:
            hook = kept_out(partial(self._observe, entry.index, bounds))
            self._handles.append(entry.layer.register_forward_pre_hook(hook, with_kwargs=True))

    def end(self) -> None:
        """A token is decoded, or the guard leaves: take them off. A layer without hooks is called faster."""
        while self._handles:
            self._handles.pop().remove()

    def _observe(
        self, layer: int, observers: list[BoundMethod], module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        running = self.guard.reading.current
        state = None if running is None else running.state
        # Text in front of a picture is seen too: it may stay in a cache, and what is found there counts later.
        if state is None or not state.reading:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        for bound in observers:
            if bound.method.edited_branch != state.side:
                continue
            memory = state.memory(bound.method.name, layer)
            bound.method.observe_hidden(
                HiddenCall(hidden=hidden, layer=layer, state=state, memory=memory, prepared=bound.prepared)
            )
