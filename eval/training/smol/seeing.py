"""First stage: the tower learns other scales, the projector to put patches where SmolLM2's words for them lie."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from vlm_guard.eval.scenes.categories import NAMES
from vlm_guard.eval.training.checkpoints import load_moments, load_weights, read_progress, save_checkpoint
from vlm_guard.eval.training.model import WIDTH, normalise
from vlm_guard.eval.training.scene_store import SceneStore
from vlm_guard.eval.training.smol.losses import name_directions, naming_loss, norm_loss, side_direction, side_loss
from vlm_guard.eval.training.smol.recipe import Recipe

_LOG_STEPS = 20
_CHECKPOINT_SECONDS = 90.0


class Seer(nn.Module):
    """What is trained: tower, projector, and a layer that is thrown away afterwards.

    That layer reads the categories in the picture off the class token, so that the class token has something to look
    for, as CLIP's has; the first model's was never trained.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.present = nn.Linear(WIDTH, len(NAMES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, 64, 576) and scores (B, 80) of the categories, of uint8 pixels (B, 96, 96, 3)."""
        hidden = self.tower(pixel_values=normalise(pixels)).last_hidden_state
        return self.projector(hidden[:, 1:]), self.present(hidden[:, 0])


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the losses compare visual tokens with; see `vlm_guard.eval.training.smol.losses`."""

    names: Tensor
    side: Tensor

    @classmethod
    def of(cls, embeddings: Tensor, tokenizer: PreTrainedTokenizerBase) -> Words:
        """Of a language model's word embeddings."""
        return cls(names=name_directions(embeddings, tokenizer), side=side_direction(embeddings, tokenizer))


def cosine_rate(peak: float, step: int, steps: int, warm: int) -> float:
    """A warm-up of `warm` steps, then half a cosine down to 4 % of the peak."""
    return peak * min(1.0, (step + 1) / warm) * (0.04 + 0.96 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def seeing_loss(
    seer: Seer, pixels: Tensor, patches: Tensor, present: Tensor, words: Words, recipe: Recipe
) -> tuple[Tensor, dict[str, float]]:
    """Loss and figures of one step.

    Args:
        seer: what is trained.
        pixels: uint8 (B, 96, 96, 3).
        patches: int64 (B, 64).
        present: float32 (B, 80), 1 for categories in the picture.
        words: of the language model.
        recipe: the run's numbers.
    """
    with torch.autocast("cpu", torch.bfloat16):
        visual, scores = seer(pixels)
    naming, accuracy = naming_loss(visual, patches, words.names)
    placing = side_loss(visual, words.side)
    # Few of 80 categories are in a picture: those weigh ten times as much as one that is not.
    told = F.binary_cross_entropy_with_logits(scores.float(), present, pos_weight=torch.tensor(10.0))
    loss = naming + recipe.side_weight * placing + recipe.class_weight * told + 0.02 * norm_loss(visual)
    found = (scores > 0) & (present > 0)
    figures = {"patch_loss": naming.item(), "patch_accuracy": accuracy.item(), "side_loss": placing.item()}
    figures |= {"class_loss": told.item(), "class_recall": (found.sum() / present.sum().clamp_min(1)).item()}
    return loss, figures


def _batches(store: SceneStore, recipe: Recipe, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels, patches and present categories of every step from `start` on."""
    per_round = len(store) // recipe.see_batch
    for step in range(start, recipe.see_steps):
        order = np.random.default_rng((recipe.seed, step // per_round)).permutation(len(store))
        places = np.sort(order[(step % per_round) * recipe.see_batch :][: recipe.see_batch])
        present = np.zeros((len(places), len(NAMES)), np.float32)
        for row, place in enumerate(places):
            categories = store.objects[place, :, 0]
            present[row, categories[categories >= 0]] = 1
        patches = store.patches[places].astype(np.int64).reshape(len(places), -1)
        pixels = np.ascontiguousarray(store.pixels[places])
        yield torch.from_numpy(pixels), torch.from_numpy(patches), torch.from_numpy(present)


def learn_to_see(
    model: LlavaForConditionalGeneration, store: SceneStore, words: Words, recipe: Recipe, folder: Path
) -> None:
    """Train tower and projector of `model`, or go on; the result is kept as ``see.safetensors`` in `folder`.

    One process of one thread. ``log.jsonl`` gets a line every 20 steps.
    """
    torch.manual_seed(recipe.seed)
    seer, path, step = Seer(model), folder / "see.safetensors", 0
    groups = [(seer.tower.parameters(), recipe.tower_rate)]
    groups += [(part.parameters(), recipe.see_rate) for part in (seer.projector, seer.present)]
    optimiser = torch.optim.AdamW(
        [{"params": list(weights), "peak": peak} for weights, peak in groups],
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    if path.is_file():
        load_weights(path, seer)
        load_moments(path, seer, optimiser)
        step = int(read_progress(path)["steps"])
    saved = begun = time.monotonic()
    means: dict[str, float] = {}
    for pixels, patches, present in _batches(store, recipe, step):
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(group["peak"], step, recipe.see_steps, 100)
        loss, figures = seeing_loss(seer, pixels, patches, present, words, recipe)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(seer.parameters(), 1.0)
        optimiser.step()
        step += 1
        for name, value in figures.items():
            if not math.isnan(value):
                means[name] = 0.95 * means.get(name, value) + 0.05 * value
        if step % _LOG_STEPS == 0 or step == recipe.see_steps:
            log_line(folder, "see", step, recipe.see_steps, time.monotonic() - begun, means)
        if time.monotonic() - saved > _CHECKPOINT_SECONDS or step == recipe.see_steps:
            save_checkpoint(path, seer, optimiser, {"stage": "see", "steps": step})
            saved = time.monotonic()


def log_line(folder: Path, stage: str, step: int, steps: int, seconds: float, means: dict[str, float]) -> None:
    """One line of ``log.jsonl`` and of the screen; `seconds` since this process started the stage."""
    line = {"stage": stage, "step": step, "of": steps, "seconds": round(seconds, 1)}
    line |= {name: round(value, 4) for name, value in means.items()}
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
