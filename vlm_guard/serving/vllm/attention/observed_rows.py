"""Rows of prompts whose hidden states methods look at, such as VAR, which finds attention sinks there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vlm_guard.method.attention_calls import BoundMethod, HiddenCall
from vlm_guard.method.state import GenerationState

Entering = Callable[[slice | Tensor], Tensor]
"""From rows of a step to the hidden states [Q, hidden size] that enter a layer, before its norm."""


class LooksBetweenLayers(Protocol):
    """Rows that somebody looks at."""

    def show(self, layer: int, entering: Entering) -> None:
        """Show them.

        Args:
            layer: index of the decoder layer that they enter; the depth for what leaves the last one.
            entering: gives their hidden states.
        """


@dataclass(frozen=True, eq=False)
class ObservedRows:
    """Consecutive rows of a step that belong to one prompt.

    Attributes:
        observers: by decoder layer, the methods that look at what enters it.
        state: the generation, which has taken in these rows.
        rows: where they are among the rows of the step.
    """

    observers: Mapping[int, tuple[BoundMethod, ...]]
    state: GenerationState
    rows: slice

    def show(self, layer: int, entering: Entering) -> None:
        """Show the methods what enters a layer; see `LooksBetweenLayers`."""
        observers = self.observers.get(layer)
        if not observers:
            return
        hidden = entering(self.rows)[None]
        for bound in observers:
            memory = self.state.memory(bound.method.name, layer)
            bound.method.observe_hidden(
                HiddenCall(hidden=hidden, layer=layer, state=self.state, memory=memory, prepared=bound.prepared)
            )
