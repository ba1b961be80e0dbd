"""How a model turns hidden states into logits: its final norm, its output embeddings, and what it does behind them."""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from vlm_guard.contrast.output_embeddings import after_output_embeddings, final_norm
from vlm_guard.families.architecture import GenerativeModel

if TYPE_CHECKING:
    from vlm_guard.guard import Guard


class Readout(Protocol):
    """What the lens needs of an engine that runs a model."""

    @property
    def width(self) -> int:
        """V, how many logits a state has."""

    def normed(self, states: Tensor) -> Tensor:
        """[..., D] states as they stand in front of the output embeddings."""

    def logits(self, normed: Tensor) -> Tensor:
        """[n, V] float32 of normed states [n, D]."""


class ModelReadout:
    """The readout of a model in transformers.

    Args:
        model: with a decoder and output embeddings.

    Raises:
        ValueError: it has no output embeddings, or no final norm by a known name.
    """

    def __init__(self, model: GenerativeModel) -> None:
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings, so the lens cannot read its tokens")
        self._finish = after_output_embeddings(model)
        self._norm = final_norm(model)

    @classmethod
    def of(cls, guard: "Guard") -> "ModelReadout":
        """Of the model that a guard stands on."""
        return cls(guard.target.architecture.generator)

    @property
    def width(self) -> int:
        """V, how many logits a state has."""
        return int(getattr(self._head, "out_features", 0) or self._head.weight.shape[0])

    def normed(self, states: Tensor) -> Tensor:
        """[..., D] states as they stand in front of the output embeddings."""
        weight = next(self._norm.parameters(), None)
        with torch.no_grad():
            return self._norm(states if weight is None else states.to(weight.device))

    def logits(self, normed: Tensor) -> Tensor:
        """[n, V] float32 of normed states [n, D]."""
        weight = getattr(self._head, "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.device.type != "meta":
            normed = normed.to(weight.device, weight.dtype)
        with torch.no_grad():
            return self._finish(self._head(normed).float())
