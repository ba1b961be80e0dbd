"""The states of one forward pass that a method reads out beside the last ones, and their logits."""

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vlm_guard.contrast.read_out import ReadOut
from vlm_guard.families.architecture import Architecture, GenerativeModel

if TYPE_CHECKING:
    from vlm_guard.method.base import Method
    from vlm_guard.method.state import GenerationState


class EarlyStates:
    """Records the hidden states that enter `layers`, and those that are read out, until it is closed.

    Args:
        model: the model.
        architecture: its shape.
        method: the method that combines their logits.
        layers: the layers, ascending.
    """

    def __init__(
        self, model: GenerativeModel, architecture: Architecture, method: "Method", layers: tuple[int, ...]
    ) -> None:
        self._read_out = ReadOut(model, architecture, method)
        self._states: dict[int, Tensor] = {}
        self._final: Tensor | None = None
        # All layers: in some families only some of them are attention.
        modules = architecture.decoder_layers
        self._hooks = [
            modules[layer].register_forward_pre_hook(partial(self._keep, layer), with_kwargs=True) for layer in layers
        ]
        self._hooks.append(self._read_out.head.register_forward_pre_hook(self._keep_final))

    def close(self) -> None:
        """Record no more."""
        while self._hooks:
            self._hooks.pop().remove()

    def combine(self, final: Tensor, column: int, state: "GenerationState") -> Tensor:
        """The final logits [B, V] at one position, counted from the end of the pass, combined with the method's."""
        if self._final is None:
            raise RuntimeError("a forward pass went by whose output embeddings were not asked")
        head = self._read_out.head
        where = self._final.device
        entering = {layer: states[:, column].to(where) for layer, states in self._states.items()}
        call = self._read_out.call(self._final[:, column], entering, column, state)
        rows = self._read_out.rows(call)
        extra = self._read_out.finish(head(rows).transpose(0, 1).float().to(final.device))
        return self._read_out.combine(call, final, extra)

    def _keep(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._states[layer] = args[0] if args else kwargs["hidden_states"]

    def _keep_final(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self._final = args[0]
