"""Head outputs of a prompt with and without its image, layer by layer, for methods that choose heads by them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_guard.early_exit import StopForward, run_until_stopped
from vlm_guard.generation_state import GenerationState
from vlm_guard.two_streams import TwoStreams, can_cut_off

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

Recorded = dict[int, Tensor]


class HeadScoring:
    """The two streams of one prompt, and the head scales chosen from them.

    Args:
        method: the name of the method, whose attention processor is called in passes of this class.
        guard: the guard.
        inputs: of the forward pass that reads the prompt.
        layers: the layers to score.

    Attributes:
        scales: by layer [B, H] float32.
    """

    def __init__(self, method: str, guard: "Guard", inputs: dict[str, Any], layers: frozenset[int]) -> None:
        self.method = method
        self.guard = guard
        self.layers = layers
        self.scales: Recorded = {}
        target = guard.target
        ids, token_ids = inputs["input_ids"], target.architecture.visual_token_ids
        real = guard.state.real[:, : ids.shape[1]]
        self.streams = TwoStreams.of(ids, real, token_ids, target.model, target.processor)
        self._image: Recorded | None = None
        self._text: Recorded | None = None
        self._recording: Recorded | None = None
        self._joint = False
        self._stop_after: int | None = None

    def begin(self, inputs: dict[str, Any], approximation: str) -> Callable[[Any], Any] | None:
        """Run what has to be run before the prompt is read, and arrange its reading.

        Args:
            inputs: of the forward pass; changed in place when it is to read both streams.
            approximation: "none" (both streams together), "plain text stream" or "parallel".

        Returns:
            What restores the output of the reading, if its inputs were changed.
        """
        streams = self.streams
        if approximation == "none":
            joint = streams.joint_inputs(inputs, self.guard.target.model.get_input_embeddings())
            self._joint = True
            cache = inputs.get("past_key_values")
            if cache is None and inputs.get("use_cache") is not False:
                # The model would make one itself, perhaps of a kind that rows cannot be taken out of.
                cache = DynamicCache(config=self.guard.target.model.config.get_text_config(decoder=True))
            if self._alone() and can_cut_off(cache):
                inputs.update(joint, past_key_values=cache)
                return self._cut_off
            self._run(joint, last=max(self.layers))
            self._joint = False
            return None
        self._text = self._record(streams.text_inputs(inputs))
        if approximation == "parallel":
            # Masks that were made for a cache do not fit a pass without one.
            self._image = self._record(inputs | {"attention_mask": streams.attention_mask})
        return None

    def outputs(self, layer: int, output: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """[M, H, D] head outputs at the last position with and without image, once both are known.

        Args:
            layer: index of the layer.
            output: [rows, Q, H, D] attention output of this pass, or None while it is not computed yet.
        """
        if self._image is not None and self._text is not None and layer in self._image:
            return self._image[layer], self._text_output(layer, self._image[layer])
        if output is None:
            return None
        rows, device = self.streams.with_image.to(output.device), output.device
        if self._recording is not None:
            last = self.streams.last if output.shape[0] == self.streams.batch else None
            of_text = self._recording is self._text
            self._recording[layer] = output[:, -1] if of_text else output[rows, last.to(device)[rows]]
            if layer == self._stop_after:
                raise StopForward
            return None
        image = output[rows, self.streams.last.to(device)[rows]]
        if self._joint:
            return image, output[self.streams.batch :, -1]
        return image, self._text_output(layer, image)

    def _text_output(self, layer: int, like: Tensor) -> Tensor:
        """[M, H, D] of the text stream; zero in a cross-attention layer, which a prompt without image skips."""
        known = self._text.get(layer)
        return torch.zeros_like(like) if known is None else known.to(like.device)

    def choose(self, layer: int, scale: Tensor) -> None:
        """Keep the scale [M, H] of the rows with an image; other rows have 1."""
        full = torch.ones(self.streams.batch, scale.shape[1], device=scale.device)
        full[self.streams.with_image.to(scale.device)] = scale
        self.scales[layer] = full
        if layer == self._stop_after:
            raise StopForward

    def scale(self, layer: int, rows: int) -> Tensor | None:
        """[rows, H] what is applied in the current pass; None while the streams are only recorded."""
        if self._recording is not None:
            return None
        scale = self.scales[layer]
        if rows == scale.shape[0]:
            return scale
        return torch.cat((scale, scale[self.streams.with_image.to(scale.device)]))

    # -- passes -----------------------------------------------------------------------------------------------

    def _alone(self) -> bool:
        """Whether no other method acts inside the decoder, so that further rows disturb nobody."""
        others = [bound.method for bound in self.guard.methods if bound.method.name != self.method]
        stations = ("attach", "begin_forward", "edit_attention", "observe_hidden")
        return not any(other.overrides(station) for other in others for station in stations)

    def _record(self, inputs: dict[str, Any]) -> Recorded:
        self._recording = recorded = {}
        if inputs.get("input_ids") is self.streams.text.input_ids:
            self._text = recorded
        self._run(inputs, last=max(self.layers))
        self._recording = None
        return recorded

    def _run(self, inputs: dict[str, Any], last: int) -> None:
        """A forward pass up to layer `last` in which only this method's processor runs."""
        guard, kept = self.guard, self.guard.state
        state = GenerationState(guard.target.architecture.visual_token_ids, None)
        state.read(inputs["input_ids"], inputs.get("attention_mask"), 0, None)
        # Rows are edited where they have an image; the twins of rows with one count as such.
        state.visual, state.active, state.only = state.real.clone(), True, self.method
        vars(state.memory(self.method, -1))["scoring"] = self
        guard.state, self._stop_after = state, last
        try:
            run_until_stopped(guard.target.architecture.generator, inputs)
        finally:
            guard.state, self._stop_after = kept, None

    def _cut_off(self, output: Any) -> Any:
        self._joint = False
        return self.streams.cut_off(output, self.guard.target.model)
