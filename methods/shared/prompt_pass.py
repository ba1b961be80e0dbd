"""Passes over a prompt that a method makes on its own before the prompt is read, to learn something of it."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from vlm_guard.method import (
    TOKEN_TYPES,
    AttentionCall,
    ForwardCall,
    GenerationState,
    Sign,
    StopForward,
    all_heads,
    run_until_stopped,
)

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
    layers, length = call.guard.target.architecture.decoder_layers, inputs["input_ids"].shape[1]
    found: dict[int, Tensor] = {}

    def keep(layer: int, module: nn.Module, args: tuple, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        rows, positions = (part.to(hidden.device) for part in places)
        # Layers that share an earlier one's keys and values may compute only the last rows of a prompt.
        found[layer] = hidden[rows, positions - (length - hidden.shape[1])]
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


def last_row_attention(call: ForwardCall, method: str, inputs: Mapping[str, Any], side: Sign) -> dict[int, Tensor]:
    """The attention of the row that predicts the first token, in a pass of the bare decoder.

    The method's attention processor is asked in this pass, and has to hand each call to `record_last_row`.

    Args:
        call: the pass that is about to read the prompt; it is left as it is.
        method: the name of the method.
        inputs: of the pass that is made here.
        side: the branch that the method edits.

    Returns:
        By layer of the method [B, P] float32, mean over heads.
    """
    state = GenerationState(call.guard.target.architecture.visual_token_ids, None, side)
    state.read(inputs["input_ids"], inputs.get("attention_mask"), 0, None)
    state.only = method
    recorded: dict[int, Tensor] = {}
    vars(state.memory(method, -1))["recorded"] = recorded
    with call.guard.reading.running(state):
        run_until_stopped(call.guard.target.architecture.generator, inputs)
    return recorded


def record_last_row(call: AttentionCall) -> bool:
    """Keep the last row of a layer, if the running pass is one of `last_row_attention`; whether it is."""
    recorded: dict[int, Tensor] | None = getattr(call.state.memory(call.method, -1), "recorded", None)
    if recorded is None:
        return False
    answer = call.select("answer")
    if answer is not None and call.layer not in recorded:
        recorded[call.layer] = all_heads(answer.weights(), 1, call.target).mean(1)[:, 0]
    return True


def _is_of_tokens(name: str) -> bool:
    """Whether the last dimension of a model input is that of the tokens."""
    return name in ("input_ids", "attention_mask", "position_ids", "labels", *TOKEN_TYPES)
