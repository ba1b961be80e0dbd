"""Head outputs of a prompt with and without its image, layer by layer, for methods that choose heads by them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    ForwardCall,
    GenerationState,
    RowSelection,
    StopForward,
    acts_in_model,
    run_until_stopped,
)
from vlm_guard.methods.shared.text_stream import TextStream
from vlm_guard.methods.vhr.layer_by_layer import LayerByLayer

Outputs = dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class _TextBeside:
    """The text stream while it goes through the layers beside the image stream, and what is known of its pass."""

    stream: LayerByLayer
    state: GenerationState


class HeadScoring:
    """The two streams of one prompt, and the head scales chosen from them.

    The text stream is a pass of its own over the prompt without its image tokens. Where its heads are to be scaled
    too, it goes through the layers side by side with the image stream: a scored layer of the image stream, once it
    knows its output, runs the text stream's layers up to the same one, in which the heads are chosen.

    Args:
        method: the name of the method, whose attention processor is called in passes of this class.
        call: the forward pass that reads the prompt.
        inputs: its inputs, up to the end of the prompt.
        layers: the layers to score.

    Attributes:
        scales: by layer [B, H] float32.
    """

    def __init__(self, method: str, call: ForwardCall, inputs: dict[str, Any], layers: frozenset[int]) -> None:
        self.method = method
        self.guard = call.guard
        self.last_layer = max(layers)
        self.scales: Outputs = {}
        target = call.guard.target
        ids, token_ids = inputs["input_ids"], target.architecture.visual_token_ids
        real = call.state.real[:, : ids.shape[1]]
        self.stream = TextStream.of(ids, real, token_ids, target.model, target.processor)
        self._image: Outputs | None = None
        self._text: Outputs = {}
        # While a stream is only looked at, without any scale: where its outputs are kept, of which row and position.
        self._recording: tuple[Outputs, tuple[Tensor, Tensor]] | None = None
        self._beside: _TextBeside | None = None
        self._text_state: GenerationState | None = None
        # While the text stream runs a scored layer: the image stream's output there.
        self._waiting: Tensor | None = None
        self._stop_after: int | None = None

    def begin(self, inputs: dict[str, Any], approximation: str) -> None:
        """Run what has to be run before the prompt is read.

        Args:
            inputs: of the forward pass that reads the prompt.
            approximation: "none" (streams side by side), "plain text stream" or "parallel".

        Raises:
            ValueError: the streams cannot go side by side in this model.
        """
        text = self.stream.inputs(inputs)
        # Masks that were made for a cache do not fit a pass without one.
        image = inputs | {"attention_mask": self.stream.attention_mask}
        if approximation != "none":
            self._text = self._record(text, self.stream.text_ends)
            if approximation == "parallel":
                self._image = self._record(image, self.stream.ends)
            return
        architecture = self.guard.target.architecture
        self._text_state = self._state(text)
        try:
            with self._in_state(self._text_state):
                stream = LayerByLayer(architecture.generator, text, architecture.decoder_layers, self.last_layer)
        except ValueError as error:
            raise ValueError(f"{self.method}: {error}; use approximation='plain text stream'") from None
        self._beside = _TextBeside(stream, self._text_state)
        if not self._alone():
            # Heads are those of the bare model, so its image stream is read on its own first.
            self._run(image, stop_after=self.last_layer)

    def outputs(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """[M, H, D] head outputs at the last position with and without image, once both are known.

        Args:
            call: the attention call of a layer; its output is None while it is not computed yet.
        """
        layer, output = call.layer, call.output
        if self._image is not None and layer in self._image:
            return self._image[layer], self._text_output(layer, self._image[layer])
        if output is None:
            return None
        if self._in_text_stream:
            waiting = self._waiting
            if waiting is None:
                raise RuntimeError("the text stream runs a layer that the image stream has not been through")
            every = torch.arange(output.shape[0], device=output.device)
            text = _at(call, output, every, torch.full_like(every, output.shape[1] - 1))
            return waiting, text.to(waiting.device)
        if self._recording is not None:
            recorded, places = self._recording
            recorded[layer] = _at(call, output, *places)
            if layer == self._stop_after:
                raise StopForward
            return None
        image = _at(call, output, *self.stream.ends)
        if self._beside is not None and self._choose_beside(self._beside, layer, image):
            return None
        return image, self._text_output(layer, image)

    def choose(self, layer: int, scale: Tensor) -> None:
        """Keep the scale [M, H] of the rows with an image; other rows have 1."""
        full = torch.ones(self.stream.batch, scale.shape[1], device=scale.device)
        full[self.stream.with_image.to(scale.device)] = scale
        self.scales[layer] = full
        if layer == (self.last_layer if self._in_text_stream else self._stop_after):
            raise StopForward

    def scale(self, layer: int) -> Tensor | None:
        """[rows, H] what is applied in the current pass; None while heads are not chosen, or only recorded."""
        scale = self.scales.get(layer)
        if scale is None or self._recording is not None:
            return None
        return scale[self.stream.with_image.to(scale.device)] if self._in_text_stream else scale

    @property
    def _in_text_stream(self) -> bool:
        """Whether the running pass is the text stream beside another one."""
        running = self.guard.reading.current
        return self._text_state is not None and running is not None and running.state is self._text_state

    def _text_output(self, layer: int, like: Tensor) -> Tensor:
        """[M, H, D] of the text stream; zero in a cross-attention layer, which a prompt without image skips."""
        known = self._text.get(layer)
        return torch.zeros_like(like) if known is None else known.to(like.device)

    # -- passes -----------------------------------------------------------------------------------------------

    def _alone(self) -> bool:
        """Whether no other method acts inside the decoder, so that the prompt is read as by the bare model."""
        others = [bound.method for bound in self.guard.methods if bound.method.name != self.method]
        return not any(acts_in_model(other) for other in others)

    def _choose_beside(self, beside: "_TextBeside", layer: int, image: Tensor) -> bool:
        """Run the text stream through `layer`, where it chooses the heads; whether it goes through that layer at all.

        Args:
            beside: the text stream.
            layer: index of the layer.
            image: [M, H, D] output of the image stream there.
        """
        self._waiting = image
        with self._in_state(beside.state):
            try:
                passed = beside.stream.advance(layer)
            except StopForward:
                passed = True
        if layer == self.last_layer:
            self._beside = None
        if passed and layer == self._stop_after:
            raise StopForward
        return passed

    def _record(self, inputs: dict[str, Any], places: tuple[Tensor, Tensor]) -> Outputs:
        recorded: Outputs = {}
        self._recording = recorded, places
        self._run(inputs, stop_after=self.last_layer)
        self._recording = None
        return recorded

    def _state(self, inputs: dict[str, Any]) -> GenerationState:
        """The state of a pass in which only this method's processor runs."""
        state = GenerationState(self.guard.target.architecture.visual_token_ids, None)
        state.read(inputs["input_ids"], inputs.get("attention_mask"), 0, None)
        # Rows without any visual token are scored as well.
        state.visual, state.active, state.only = state.real.clone(), True, self.method
        vars(state.memory(self.method, -1))["scoring"] = self
        return state

    def _run(self, inputs: dict[str, Any], stop_after: int) -> None:
        """A forward pass up to one layer in which only this method's processor runs."""
        self._stop_after = stop_after
        try:
            with self._in_state(self._state(inputs)):
                run_until_stopped(self.guard.target.architecture.generator, inputs)
        finally:
            self._stop_after = None

    @contextmanager
    def _in_state(self, state: GenerationState) -> Iterator[None]:
        """What runs inside is not the generation's own pass, but one of this class."""
        with self.guard.reading.running(state):
            yield


def _at(call: AttentionCall, output: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """[M, H, D] head outputs [B, Q, H, D] of a call at one place of each of M rows, at least float32.

    Heads are chosen by comparing these numbers, so in half precision they are computed again without rounding.
    """
    rows, places = rows.to(output.device), places.to(output.device)
    if output.dtype == torch.promote_types(output.dtype, torch.float32):
        return output[rows, places]
    index = torch.zeros(output.shape[0], 1, dtype=torch.long, device=output.device)
    index[rows, 0] = places
    chosen = RowSelection(index=index, valid=torch.ones_like(index, dtype=torch.bool), full=True)
    return call.of_rows(chosen).attend(AttentionEdit(), wide=True).output[rows, 0]
