"""Passes over a prompt that a method makes on its own before the prompt is read, to learn something of it."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_guard.method import TOKEN_TYPES, ForwardCall, StopForward, run_until_stopped

Places = tuple[Tensor, Tensor]


def prompt_inputs(inputs: dict[str, Any], end: int, length: int) -> dict[str, Any]:
    """Inputs of a pass over prompt and answer, cut to the prompt.

    Args:
        inputs: of a forward pass over the first `end` tokens of a sequence.
        end: how many there are.
        length: how many of them are the prompt.
    """
    if end == length:
        return inputs
    of_tokens = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and _is_of_tokens(name)}
    return inputs | {name: value[..., :length] for name, value in of_tokens.items()}


def whole_prompt_inputs(call: ForwardCall, method: str) -> dict[str, Any]:
    """The inputs of a pass that reads a prompt, without the answer that may follow it.

    Raises:
        ValueError: the pass reads only a part of the prompt.
    """
    end, length = call.state.offset + call.inputs["input_ids"].shape[1], call.state.prompt_length
    if call.state.offset or (length is not None and end < length):
        raise ValueError(
            f"{method} needs the whole prompt in one pass; do not set prefill_chunk_size with it, and start from the "
            "whole prompt without past_key_values"
        )
    return call.inputs if length is None else prompt_inputs(call.inputs, end, length)


def states_behind_layers(call: ForwardCall, inputs: Mapping[str, Any], places: Places) -> list[Tensor]:
    """The hidden states behind every decoder layer at one place of each of M rows, in a pass of the bare decoder.

    Args:
        call: the pass that is about to read the prompt; it is left as it is.
        inputs: of the pass that is made here.
        places: [M] row and [M] position.

    Returns:
        By layer [M, hidden size], in the model's type and on the layer's device. A layer that this pass skips (a
        cross-attention layer without an image) has the states of the one before it.
    """
    layers = call.guard.target.architecture.decoder_layers
    found: dict[int, Tensor] = {}

    def keep(layer: int, module: nn.Module, args: tuple, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        rows, positions = (part.to(hidden.device) for part in places)
        found[layer] = hidden[rows, positions]
        if layer == len(layers) - 1:
            raise StopForward

    # No generation is known inside, so that no method edits this pass.
    with ExitStack() as stack, call.guard.reading.running(None):
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(partial(keep, index)).remove)
        run_until_stopped(call.guard.target.architecture.generator, inputs)
    states: list[Tensor] = []
    for index in range(len(layers)):
        states.append(found[index] if index in found else states[-1])
    return states


def row_ends(real: Tensor) -> Tensor:
    """[B] position of the last real token of every row, from `real` [B, P] bool."""
    return (torch.arange(real.shape[1], device=real.device) * real).argmax(-1)


def _is_of_tokens(name: str) -> bool:
    """Whether the last dimension of a model input is that of the tokens."""
    return name in ("input_ids", "attention_mask", "position_ids", "labels", *TOKEN_TYPES)
