"""Families that turn prompt and picture into embeddings and let an inner language model generate from them (BLIP-2).

The forward passes of a generation are then those of the inner model, which is given embeddings instead of ids. The
ids are known all the same: from the call of `generate`, or from the pass of the whole model around the inner one. So
the guard follows the inner model, and finds the ids of the embeddings added to what the inner model is given.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlm_guard.method.visual_tokens import visual_mask
from vlm_guard.runtime.graph_break import kept_out

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.target import GuardTarget

Undo = Callable[[], Any]
# What a feature function of a Q-former family takes beside its tensors.
_SETTINGS = ("interpolate_pos_encoding",)
# Pixels of videos are [B, frames, 3, height, width].
VIDEO_DIMENSIONS = 5


def follow_forwards(guard: "Guard", begins: bool) -> list[Undo]:
    """Hook every forward pass of the model that generates to the guard's reading.

    Args:
        guard: whose model it is.
        begins: whether a method changes the inputs of passes that read a prompt.

    Returns:
        What undoes it.
    """
    outer, inner = guard.target.model, guard.target.architecture.generator
    reading = _ForwardReading(guard)
    hooks = [inner.register_forward_pre_hook(_Hook(guard, kept_out(reading.read)), with_kwargs=True)]
    if begins:
        hooks.append(inner.register_forward_pre_hook(_Hook(guard, kept_out(reading.begin)), with_kwargs=True))
    if inner is not outer:
        hooks.append(outer.register_forward_pre_hook(reading.enter_whole, with_kwargs=True))
        hooks.append(outer.register_forward_hook(reading.leave_whole, always_call=True))
    return [hook.remove for hook in hooks]


def without_double_prompt(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a forward pass without ids that are also given as embeddings: models take one of them."""
    doubled = inputs.get("inputs_embeds") is not None
    return {name: value for name, value in inputs.items() if not (doubled and name == "input_ids")}


def named_arguments(
    target: "GuardTarget", generate: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `generate` as keywords where its first one is not the prompt (Q-formers: the pixels).

    Such models make a prompt of query tokens and BOS when they are given none, which must be known here as well.
    """
    if target.architecture.generator is target.model:
        return args, kwargs
    named = inspect.signature(generate).bind_partial(*args).arguments | kwargs
    pixels, config = named.get("pixel_values"), target.model.config
    prompts = (named.get("input_ids"), named.get("inputs_embeds"), named.get("attention_mask"))
    if isinstance(pixels, Tensor) and all(item is None for item in prompts):
        queries = config.num_query_tokens * (pixels.shape[1] if pixels.dim() == VIDEO_DIMENSIONS else 1)
        ids = [target.architecture.visual_token_ids[0]] * queries + [config.text_config.bos_token_id]
        named["input_ids"] = torch.tensor([ids], device=pixels.device).repeat(pixels.shape[0], 1)
    return (), named


@dataclass(frozen=True, eq=False)
class _Hook:
    """A hook that stays out of compiled graphs. Copying or pickling it comes to the guard, which says why not."""

    guard: "Guard"
    run: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


class _ForwardReading:
    """The hooks of a guard, with the ids of prompts that the inner model is given as embeddings.

    Attributes:
        guard: the guard.
        whole: ids of the pass of the whole model that is running, if any.
    """

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        self.whole: Tensor | None = None

    def read(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass of the model that generates begins."""
        found = self.guard._findings
        self.guard._read_forward(module, args, self.named(kwargs))
        if self.whole is not None:
            # The pass began with the whole model, whose vision tower has been seen by now.
            self.guard._findings = found

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """It has been read; methods may change its inputs."""
        changed = self.guard._begin_forward(module, args, self.named(kwargs))
        return changed if changed is None else (changed[0], without_double_prompt(changed[1]))

    def enter_whole(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass of the whole model around an inner one begins."""
        self.guard._findings = {}
        self.whole = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments.get("input_ids")

    def leave_whole(self, module: nn.Module, args: tuple, output: Any) -> None:
        """It has ended, or failed."""
        self.whole = None

    def named(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the model is given, with the ids of its embeddings where it is an inner one and they are known."""
        embeddings, architecture = kwargs.get("inputs_embeds"), self.guard.target.architecture
        if not isinstance(embeddings, Tensor) or not architecture.entry.generator:
            return kwargs
        ids, prompt = self.whole, self.guard._prompt
        if ids is None and prompt is not None and prompt.input_ids is not None:
            ids = prompt.expanded(embeddings.shape[0]).input_ids
        cache = kwargs.get("past_key_values")
        first = 0 if cache is None else int(cache.get_seq_length())
        ids = None if ids is None else ids[:, first : first + embeddings.shape[1]]
        return kwargs if ids is None or ids.shape != embeddings.shape[:2] else {**kwargs, "input_ids": ids}


@dataclass(frozen=True, eq=False)
class PromptEmbedder:
    """Embeddings of a prompt with its pictures, for a contrast branch.

    Attributes:
        model: the whole model.
        visual_token_ids: ids that stand for its query tokens.
    """

    model: PreTrainedModel
    visual_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, target: "GuardTarget") -> "PromptEmbedder | None":
        """The embedder of a family whose inner model generates; None where `generate` takes ids and pictures."""
        if target.architecture.generator is target.model:
            return None
        return cls(target.model, target.architecture.visual_token_ids)

    @torch.no_grad()
    def encode(self, input_ids: Tensor, images: Mapping[str, Any]) -> Tensor:
        """[B, P, hidden size] of `input_ids` [B, P] and image inputs that are encoded now."""
        features = getattr(self.model, "get_video_features", None) or self.model.get_image_features
        known = inspect.signature(features).parameters
        given = {name: value for name, value in images.items() if name in known or name in _SETTINGS}
        return self._with(input_ids, features(**given, return_dict=True).pooler_output.flatten(0, -2))

    def reuse(self, input_ids: Tensor, given_ids: Tensor, given: Tensor) -> Tensor:
        """[B, P, hidden size] of `input_ids` [B, P] with the pictures of embeddings `given` [B, P', hidden size]."""
        return self._with(input_ids, given[visual_mask(given_ids, self.visual_token_ids)])

    def _with(self, input_ids: Tensor, features: Tensor) -> Tensor:
        embeddings = self.model.get_input_embeddings()(input_ids)
        places = visual_mask(input_ids, self.visual_token_ids)[..., None].to(embeddings.device)
        return embeddings.masked_scatter(places, features.to(embeddings.device, embeddings.dtype))
