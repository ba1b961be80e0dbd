"""The arguments of a `generate` call under the names, and with the defaults, that transformers will give them."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlm_guard.method.target import GuardTarget

# Pixels of videos are [B, frames, 3, height, width].
_VIDEO_DIMENSIONS = 5


def generate_arguments(
    target: "GuardTarget", generate: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `generate` with the prompt as `input_ids`, and with the mask that transformers would infer.

    Args:
        target: the model.
        generate: its own `generate`.
        args: positional arguments of the call.
        kwargs: the others.

    Raises:
        ValueError: the prompt has another shape than [batch, length].
    """
    if target.architecture.generator is not target.model:
        args, kwargs = _named_arguments(target, generate, args, kwargs)
    else:
        kwargs = dict(kwargs)
        given = args[0] if args else kwargs.get("inputs")
        if isinstance(given, Tensor) and not given.is_floating_point() and kwargs.get("input_ids") is None:
            kwargs["input_ids"], args = given, args[1:]
            kwargs.pop("inputs", None)
    ids = kwargs.get("input_ids")
    if isinstance(ids, Tensor):
        if ids.dim() != 2:
            raise ValueError(
                f"input_ids must be [batch, length], given {list(ids.shape)}; "
                "add a batch dimension, for example input_ids[None]"
            )
        mask = _inferred_mask(target, ids, kwargs)
        if mask is not None:
            kwargs["attention_mask"] = mask
    return args, kwargs


def _named_arguments(
    target: "GuardTarget", generate: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments as keywords where the first one is not the prompt (Q-formers: the pixels).

    Such models make a prompt of query tokens and BOS when they are given none, which must be known here as well.
    """
    named = inspect.signature(generate).bind_partial(*args).arguments | kwargs
    pixels, config = named.get("pixel_values"), target.model.config
    prompts = (named.get("input_ids"), named.get("inputs_embeds"), named.get("attention_mask"))
    if isinstance(pixels, Tensor) and all(item is None for item in prompts):
        queries = config.num_query_tokens * (pixels.shape[1] if pixels.dim() == _VIDEO_DIMENSIONS else 1)
        ids = [target.architecture.visual_token_ids[0]] * queries + [config.text_config.bos_token_id]
        named["input_ids"] = torch.tensor([ids], device=pixels.device).repeat(pixels.shape[0], 1)
    return (), named


def _inferred_mask(target: "GuardTarget", input_ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
    """[B, P] long, 0 for padding, where the call gives no mask and transformers would infer one; else None.

    transformers takes the padding token for padding where it occurs in the prompt and is no end token.
    """
    if kwargs.get("attention_mask") is not None or not input_ids.numel():
        return None
    pad, end = (_generation_setting(target, kwargs, name) for name in ("pad_token_id", "eos_token_id"))
    ends = end.flatten().tolist() if isinstance(end, Tensor) else end if isinstance(end, list | tuple) else [end]
    if pad is None or int(pad) in ends:
        return None
    real = input_ids != int(pad)
    return None if bool(real.all()) else real.long()


def _generation_setting(target: "GuardTarget", kwargs: Mapping[str, Any], name: str) -> Any:
    """A setting of generation: of the call, of its configuration, or of the model's own."""
    for owner in (kwargs.get(name), getattr(kwargs.get("generation_config"), name, None)):
        if owner is not None:
            return owner
    return getattr(target.model.generation_config, name, None)


def with_given_prompt(output: Any, given: Tensor | None, read: Tensor | None) -> Any:
    """What `generate` returns, its sequences beginning with the prompt that the caller gave.

    A method may have the model read another prompt, for instance one with a second picture. The caller cuts the prompt
    off by the length of their own.

    Args:
        output: [B * n, P' + T] token ids, or an output with such `sequences`.
        given: [B, P] ids of the prompt as it was given; None where there are no ids.
        read: [B, P'] as it was read.
    """
    if given is None or read is None or given is read or torch.equal(given, read):
        return output
    sequences = output if isinstance(output, Tensor) else output.sequences
    count, length = sequences.shape[0] // given.shape[0], read.shape[1]
    rows = read.repeat_interleave(count, 0).to(sequences.device)
    if sequences.shape[1] < length or not torch.equal(sequences[:, :length], rows):
        return output  # some architectures return the answer alone
    prompts = given.repeat_interleave(count, 0).to(sequences.device)
    sequences = torch.cat((prompts, sequences[:, length:]), 1)
    if isinstance(output, Tensor):
        return sequences
    output.sequences = sequences
    return output
