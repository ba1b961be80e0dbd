"""A prompt and the same prompt without its image, both read in one step of vLLM, for methods that compare them.

vLLM computes a layer for all rows of a step at once. So behind each layer's attention the outputs of both streams are
there, heads are chosen, and both are scaled before the next layer, in the order in which VHR asks for it.
"""

from torch import Tensor

from vlm_guard.method.attention_calls import AttentionCall


class StepStreams:
    """The two streams of one request (`vlm_guard.method.two_streams.TwoStreams`).

    What was chosen is kept as long as the request: read again after a preemption, it needs no second stream.

    Args:
        last: the prompt's last position.
    """

    def __init__(self, last: int) -> None:
        self._last = last
        self._text: Tensor | None = None
        self._scales: dict[int, Tensor] = {}

    @property
    def scales(self) -> dict[int, Tensor]:
        """By layer the scale [1, H] that was chosen."""
        return self._scales

    def meet(self, text: Tensor) -> None:
        """Take in the head outputs [1, H, D] of a layer at the text stream's last position."""
        self._text = text

    def outputs(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """[1, H, D] head outputs of the layer at the last position, with and without the image."""
        if call.output is None or self._text is None:
            return None
        return call.output[:, self._last], self._text

    def choose(self, layer: int, scale: Tensor) -> None:
        """Keep the scale [1, H] of a layer."""
        self._scales[layer] = scale
        self._text = None

    def scale(self, layer: int) -> Tensor | None:
        """[1, H] what is applied to every row; None in a layer that chooses nothing."""
        return self._scales.get(layer)
