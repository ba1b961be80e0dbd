"""Reading states out as logits: which methods want it, and the call they are handed."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vlm_guard.contrast.output_embeddings import after_output_embeddings, final_norm
from vlm_guard.families.architecture import Architecture, GenerativeModel
from vlm_guard.method.read_out_call import ReadOutCall

if TYPE_CHECKING:
    from vlm_guard.method.base import Method
    from vlm_guard.method.state import GenerationState
    from vlm_guard.method.target import GuardTarget


def reads_out(method: "Method", target: "GuardTarget") -> bool:
    """Whether a method that contrasts does so with states of the same pass, instead of a second branch."""
    return bool(method.early_layers(target)) or method.overrides("combine_read_out")


class ReadOut:
    """What a method reads out of a model.

    Args:
        model: the model.
        architecture: its shape.
        method: the method.

    Attributes:
        head: the output embeddings.
        finish: what the model does to logits behind them.

    Raises:
        ValueError: the model has no output embeddings, or no final norm by a known name where the method wants it.
    """

    def __init__(self, model: GenerativeModel, architecture: Architecture, method: "Method") -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings, so early layers have no logits")
        self.head: nn.Module = head
        self.finish = after_output_embeddings(model)
        self._method = method
        self._architecture = architecture
        self._find_norm = partial(final_norm, model)
        if getattr(method, "final_norm", False):
            self._find_norm()

    def call(
        self, final: Tensor, entering: Mapping[int, Tensor], position: int, state: "GenerationState | None"
    ) -> ReadOutCall:
        """What the method is handed; see `ReadOutCall`."""
        return ReadOutCall(
            method=self._method.name,
            final=final,
            entering=entering,
            position=position,
            state=state,
            architecture=self._architecture,
            head=self.head,
            finish=self.finish,
            find_norm=self._find_norm,
        )

    def rows(self, call: ReadOutCall) -> Tensor:
        """[B, E, D] what is read out beside the model's own state, in its type."""
        return self._method.read_out(call).to(call.final.device, call.final.dtype)

    def combine(self, call: ReadOutCall, final: Tensor, extra: Tensor) -> Tensor:
        """[B, V] of the final logits [B, V] and those of the rows [E, B, V], both float32."""
        return self._method.combine_read_out(call, final, extra)
