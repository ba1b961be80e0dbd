"""The hidden states that enter early layers in one forward pass, and their logits."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_guard.contrast.layer_contrast import after_output_embeddings, final_norm
from vlm_guard.families.architecture import Architecture, GenerativeModel

if TYPE_CHECKING:
    from vlm_guard.method.base import Method


class EarlyStates:
    """Records the hidden states that enter `layers` until it is closed.

    Args:
        model: the model.
        architecture: its shape.
        method: says whether the final norm comes before the output embeddings.
        layers: the layers, ascending.
    """

    def __init__(
        self, model: GenerativeModel, architecture: Architecture, method: "Method", layers: tuple[int, ...]
    ) -> None:
        self._layers = layers
        self._head = model.get_output_embeddings()
        self._norm = final_norm(model) if getattr(method, "final_norm", False) else None
        self._finish = after_output_embeddings(model)
        self._states: dict[int, Tensor] = {}
        # All layers: in some families only some of them are attention.
        modules = architecture.decoder_layers
        self._hooks = [
            modules[layer].register_forward_pre_hook(partial(self._keep, layer), with_kwargs=True) for layer in layers
        ]

    def close(self) -> None:
        """Record no more."""
        while self._hooks:
            self._hooks.pop().remove()

    def logits(self, column: int) -> Tensor:
        """[E, B, V] float32 logits of the early layers at one position."""
        states = [self._states[layer][:, column] for layer in self._layers]
        early = torch.stack([state.to(self._head.weight.device) for state in states])
        early = early if self._norm is None else self._norm(early)
        return self._finish(self._head(early.to(self._head.weight.dtype)).float())

    def _keep(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._states[layer] = args[0] if args else kwargs["hidden_states"]
