"""The lens's readout of a model that vLLM has loaded."""

from typing import Any

from torch import Tensor, nn

from vlm_guard.serving.vllm.runners.layer_inputs import norm_behind


class EngineReadout:
    """The norm and the output embeddings of one of vLLM's models.

    Args:
        model: as vLLM loads it.
        width: V, how many logits a state has.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        self._model: Any = model
        self._norm = norm_behind(model)
        self.width = width

    def normed(self, states: Tensor) -> Tensor:
        """[..., D] states as they stand in front of the output embeddings."""
        return self._norm(states.flatten(0, -2)).view(states.shape)

    def logits(self, normed: Tensor) -> Tensor:
        """[n, V] float32 of normed states [n, D].

        Where tensor parallelism gathers them in its first process only, they are zero in the others.
        """
        found = self._model.compute_logits(normed)
        return normed.new_zeros(len(normed), self.width).float() if found is None else found.float()
