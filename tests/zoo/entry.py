"""What a family of the zoo is, and what building one gives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from zoo import pristine
from zoo.prompts import (
    BOS,
    IMAGE,
    PAD,
    SPECIAL_IDS,
    VIDEO,
    Image,
    Prompt,
    generator,
    pad,
    row_ids,
    row_images,
    row_videos,
)
from zoo.weights import randomise

Inputs = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build one architecture and its inputs.

    ``image_run(image)`` gives the ids that stand for one image, image tokens and their markers alike;
    ``image_inputs(rows)`` gives the model's image arguments for the images of each row (never called without an
    image in the batch); ``token_inputs(input_ids, attention_mask)`` gives arguments derived from the ids, and
    ``joint_inputs(rows, input_ids)`` those that need both (with an image in the batch).
    """

    name: str
    model: Callable[[], tuple[type[PreTrainedModel], PreTrainedConfig]]
    image_run: Callable[[Image], list[int]]
    image_inputs: Callable[[list[list[Image]]], Inputs]
    token_inputs: Callable[[torch.Tensor, torch.Tensor], Inputs] | None = None
    joint_inputs: Callable[[list[list[Image]], torch.Tensor], Inputs] | None = None
    video_run: Callable[[Image], list[int]] | None = None
    video_inputs: Callable[[list[list[Image]]], Inputs] | None = None
    """As ``image_run`` and ``image_inputs``; None where the zoo has no videos for the family."""
    image_token_id: int | None = IMAGE
    images_per_row: int | None = None
    """The only number of images a row may have; None for any number."""
    attention: str | dict[str, str] | None = None
    """Attention implementation to build with; None is transformers' own choice."""
    dispatches: bool = True
    """False where the text decoder does not go through transformers' attention interface."""
    batch_invariant: bool = True
    """False where the stock model gives a padded row other logits than the row alone; ``facts`` says how much."""
    cache_invariant: bool = True
    """False where the stock model decodes a padded row with a cache to other logits than without one."""
    stock_failures: tuple[str, ...] = ()
    """Features of ``generate`` that fail on the unguarded model, named as in tests/zoo/test_stock_generate.py."""
    stock_differences: tuple[str, ...] = ()
    """Features of ``generate`` with which the unguarded model computes other logits than without them."""
    facts: str = ""


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    FAMILIES[family.name] = family
    return family


def families() -> list[str]:
    """Names of all families: every file of this folder that registers one is found by being there."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        if not path.stem.startswith("test_"):
            importlib.import_module(f"zoo.{path.stem}")
    return list(FAMILIES)


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """A tiny model with what a test needs around it."""

    family: Family
    model: PreTrainedModel
    seed: int
    config: PreTrainedConfig = field(repr=False)

    @property
    def image_token_id(self) -> int | None:
        return self.family.image_token_id

    @property
    def video_token_id(self) -> int | None:
        return VIDEO if self.family.video_run is not None else None

    def make_inputs(self, prompts: list[Prompt], padding_side: str = "left") -> Inputs:
        """Everything ``model(**inputs)`` and ``model.generate(**inputs)`` need for this batch."""
        self._check(prompts)
        rows = [row_ids(prompt, row, self.seed, self._runs(prompt, row)) for row, prompt in enumerate(prompts)]
        input_ids, attention_mask = pad(rows, padding_side)
        inputs: Inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        images = [row_images(prompt, row, self.seed) for row, prompt in enumerate(prompts)]
        videos = [row_videos(prompt, row, self.seed) for row, prompt in enumerate(prompts)]
        if any(images):
            inputs |= self.family.image_inputs(images)
            if self.family.joint_inputs is not None:
                inputs |= self.family.joint_inputs(images, input_ids)
        if any(videos) and self.family.video_inputs is not None:
            inputs |= self.family.video_inputs(videos)
        if self.family.token_inputs is not None:
            inputs |= self.family.token_inputs(input_ids, attention_mask)
        return {name: self._cast(value) for name, value in inputs.items()}

    def visual_tokens(self, prompts: list[Prompt]) -> list[int]:
        """How many visual tokens each row of ``make_inputs(prompts)`` has, from the architecture's own counting."""
        self._check(prompts)
        visual = {self.image_token_id, self.video_token_id}
        runs = [self._runs(prompt, row) for row, prompt in enumerate(prompts)]
        return [sum(token in visual for run in row for token in run) for row in runs]

    def adapt(self, prompts: list[Prompt]) -> list[Prompt]:
        """``prompts`` with the number of images the family needs, where it needs a certain number."""
        count = self.family.images_per_row
        return prompts if count is None else [replace(prompt, images=count) for prompt in prompts]

    def _check(self, prompts: list[Prompt]) -> None:
        count = self.family.images_per_row
        if count is not None and any(prompt.images != count for prompt in prompts):
            raise ValueError(f"{self.family.name} takes exactly {count} image(s) per row; use adapt(prompts)")
        if self.family.video_run is None and any(prompt.videos for prompt in prompts):
            raise ValueError(f"the zoo has no video inputs for {self.family.name}")

    def _runs(self, prompt: Prompt, row: int) -> list[list[int]]:
        runs = [self.family.image_run(image) for image in row_images(prompt, row, self.seed)]
        if self.family.video_run is not None:
            runs += [self.family.video_run(video) for video in row_videos(prompt, row, self.seed)]
        return runs

    def _cast(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(self.model.dtype)
        return value

    def expected_visual_mask(self, inputs: Inputs) -> torch.Tensor:
        """[B, S] bool, True on visual tokens: the model's own placeholder mask where it makes one.

        The model's ``get_placeholder_mask`` is observed during one forward; a family without that method gives
        ``input_ids == image_token_id``.  Raises ValueError for a family that has neither.
        """
        owners = [module for module in self.model.modules() if hasattr(module, "get_placeholder_mask")]
        seen: list[torch.Tensor] = []
        for owner in owners:
            owner.get_placeholder_mask = _observed(owner.get_placeholder_mask, seen)
        try:
            with torch.no_grad():
                self.model(**inputs)
        finally:
            for owner in owners:
                del owner.get_placeholder_mask
        if seen:
            return seen[0]
        if self.image_token_id is None:
            raise ValueError(f"{self.family.name} marks no visual tokens in input_ids")
        return inputs["input_ids"] == self.image_token_id


def _observed(method: Callable[..., Any], seen: list[torch.Tensor]) -> Callable[..., Any]:
    def observe(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        masks = result if isinstance(result, tuple) else (result,)
        flat = [mask.any(-1) if mask.dim() == 3 else mask for mask in masks if mask is not None]
        seen.append(torch.stack(flat).any(0))  # images and videos
        return result

    return observe


def generation_config() -> GenerationConfig:
    """Greedy, no end token (generate runs to ``max_new_tokens``), special ids never generated."""
    return GenerationConfig(
        do_sample=False, bos_token_id=BOS, eos_token_id=None, pad_token_id=PAD, suppress_tokens=list(SPECIAL_IDS)
    )


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> ZooModel:
    """A new tiny model of ``family``; the same weights for the same seed (rounded to ``dtype``).

    Raises ValueError for an unknown family.
    """
    if family not in families():
        raise ValueError(f"unknown zoo family {family!r}; known: {', '.join(FAMILIES)}")
    return build_family(FAMILIES[family], seed, dtype)


def build_family(entry: Family, seed: int = 0, dtype: torch.dtype = torch.float32) -> ZooModel:
    """As `build`, of a family that need not be registered."""
    model_class, config = entry.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(entry.name, seed).initial_seed())
        model = model_class._from_config(config, dtype=dtype, attn_implementation=entry.attention)
    model.eval()
    randomise(model, (entry.name, seed))
    for module in model.modules():  # BLIP-2 calls generate of its language model
        if isinstance(module, PreTrainedModel) and module.can_generate():
            module.generation_config = generation_config()
    pristine.record(model)
    return ZooModel(family=entry, model=model, seed=seed, config=model.config)
