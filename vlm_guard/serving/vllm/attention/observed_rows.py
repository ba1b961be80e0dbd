"""Rows of prompts whose hidden states methods look at, such as VAR, which finds attention sinks there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from vlm_guard.method.attention_calls import BoundMethod, HiddenCall
from vlm_guard.method.state import GenerationState


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

    def show(self, layer: int, entering: Callable[[slice], Tensor]) -> None:
        """Show the methods what enters a layer.

        Args:
            layer: index of the decoder layer.
            entering: from a slice of the step's rows to their hidden states [Q, hidden size], before the layer's norm.
        """
        observers = self.observers.get(layer)
        if not observers:
            return
        hidden = entering(self.rows)[None]
        for bound in observers:
            memory = self.state.memory(bound.method.name, layer)
            bound.method.observe_hidden(
                HiddenCall(hidden=hidden, layer=layer, state=self.state, memory=memory, prepared=bound.prepared)
            )
