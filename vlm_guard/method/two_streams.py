"""A prompt and the same prompt without its image, side by side: what a method asks of whoever runs both."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from vlm_guard.method.attention_calls import AttentionCall


class TwoStreams(Protocol):
    """Head outputs of a prompt with and without its image, layer by layer, and the head scales chosen from them.

    A method either runs the second stream itself, or whoever runs the model brings both (`GenerationState.streams`).
    """

    @property
    def scales(self) -> "dict[int, Tensor]":
        """By layer the scales [B, H] that were chosen."""
        ...

    def outputs(self, call: "AttentionCall") -> "tuple[Tensor, Tensor] | None":
        """[M, H, D] head outputs at the last position of the M rows with an image, with and without it.

        None while they are not known, as when `call.output` is not.
        """
        ...

    def choose(self, layer: int, scale: "Tensor") -> None:
        """Keep the scale [M, H] of a layer, for both streams and for the answer."""
        ...

    def scale(self, layer: int) -> "Tensor | None":
        """[rows, H] what is applied in the current pass; None for nothing."""
        ...
