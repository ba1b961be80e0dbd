"""Logits that are combined with those of the answer's first token, for methods that keep these (FLB)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from vlm_guard.contrast.branched_model import StandIn
from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.gate import Gate

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from vlm_guard.method.base import Method


class FirstTokenModel(StandIn):
    """The model, with the logits of every step edited by a method that is also shown those of the first one.

    Beams and returned sequences of one prompt have the same first logits, so that these need not follow a reordering.

    Args:
        model: the model.
        method: edits the logits.
        active: [B] bool, the rows of the prompt that are edited.
    """

    def __init__(self, model: GenerativeModel, method: "Method", active: Tensor) -> None:
        super().__init__(model)
        self.method = method
        self.active = active
        self._gate = Gate.read(method.gate)
        self._first: Tensor | None = None
        self._step = 0

    def __exit__(self, *exception: object) -> None:
        """Forget the first logits."""
        self._first = None

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: "GenerationConfig",
        model_kwargs: dict,
        is_first_iteration: bool = True,
    ) -> ModelOutput:
        output = self.model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)
        self._first, self._step = output.logits[:, -1].float(), 0
        return self._edit(output, self._first)

    def __call__(self, *args: Any, **model_inputs: Any) -> ModelOutput:
        """One decoding step.

        Raises:
            RuntimeError: no prompt was read before.
        """
        if self._first is None:
            raise RuntimeError("the prompt has to be read before the model decodes")
        self._step += 1
        return self._edit(self.forward(*args, **model_inputs), self._first)

    def _edit(self, output: Any, first: Tensor) -> Any:
        """The output of the model, of whatever class that is, with its last logits edited."""
        logits = output.logits[:, -1].float()
        edited = self.method.edit_logits(logits, first.to(logits.device), self._step)
        active = self.active.repeat_interleave(logits.shape[0] // self.active.shape[0]).to(logits.device)
        if self._gate is not None:
            active = active & self._gate.is_open(logits)
        output.logits = torch.where(active[:, None], edited, logits)[:, None]
        return output
