"""The training loop of one worker, and the two stages around it.

On a CPU two single-threaded processes update the same weights without locks ("Hogwild", Recht et al. 2011): one process
with two threads loses more to waiting when the machine is shared. On a GPU there is one process. Checkpoints are
written by the first worker every two minutes; after a kill all workers go on from its weights and moments.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_guard.eval.training.batches import SceneBatches
from vlm_guard.eval.training.checkpoints import load_moments, load_weights, read_progress, save_checkpoint
from vlm_guard.eval.training.losses import joint_step, vision_step
from vlm_guard.eval.training.model import start_matching
from vlm_guard.eval.training.recipe import Recipe
from vlm_guard.eval.training.scene_store import open_store
from vlm_guard.eval.training.tokenizer import BOS, IMAGE, category_tokens, encode

STAGES = ("vision", "joint", "finish")
LOG_SECONDS = 20.0
CHECKPOINT_SECONDS = 120.0
SCHEDULE = {"vision": (0.0, 1.0), "joint": (0.0, 0.9), "finish": (0.85, 1.0)}
"""From where to where the learning rate goes down its curve in each stage. The joint stage stops short of the end: with
the rest of it the model tells frequent absent things from present ones better than it is meant to."""

SNAPSHOTS = {"joint": (0.45, 0.6, 0.8, 0.9, 1.0), "finish": (0.5, 1.0)}
"""Parts of a stage after which weights are kept for the choice by behaviour."""

CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    # Memory freed after each step stays with the process; giving it back costs page faults.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "TOKENIZERS_PARALLELISM": "false",
}


def make_optimiser(model: LlavaForConditionalGeneration, recipe: Recipe, stage: str) -> torch.optim.AdamW:
    """AdamW over the stage's weights; each group's ``scale`` multiplies the learning rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        seeing = "vision_tower" in name
        if stage == "vision" and not (seeing or "multi_modal_projector" in name or "embed_tokens" in name):
            continue
        if stage != "vision" and seeing and recipe.tower_scale == 0:
            weight.requires_grad_(False)
            continue
        decayed = weight.dim() >= 2 and "embed" not in name
        groups.setdefault((seeing, decayed), []).append(weight)
    settings = [
        {
            "params": weights,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "scale": recipe.tower_scale if seeing and stage != "vision" else 1.0,
        }
        for (seeing, decayed), weights in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=1e-3, betas=(0.9, 0.98))


def learning_rate(peak: float, fraction: float, steps: int) -> float:
    """A short warm-up in steps, then half a cosine in time down to 4 % of the peak."""
    warm = min(1.0, (steps + 1) / 80)
    return peak * warm * (0.04 + 0.96 * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction))))


def train_stage(
    rank: int, model: LlavaForConditionalGeneration, recipe: Recipe, stage: str, folder: Path, start: float
) -> None:
    """Train one stage until its share of the time is used; ``start`` is the seconds of it already used.

    Rank 0 writes ``log.jsonl``, the checkpoint and, from the joint stage on, snapshots.
    """
    device = next(model.parameters()).device
    if stage == "finish":
        recipe = replace(recipe, repeat_weight=recipe.finish_repeat_weight, rare_absent=recipe.finish_rare_absent)
    if device.type == "cpu":
        torch.set_num_threads(1)
        # SDPA's CPU kernel takes 1.2 times as long for a whole step, for the sake of its backward pass.
        model.set_attn_implementation({"text_config": "eager"})
    torch.manual_seed(recipe.seed * 1000 + rank)
    # A resumed run must not see the same order again.
    stream = 1 + rank + 16 * STAGES.index(stage) + 64 * int(start)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    batch_size = recipe.vision_batch if stage == "vision" else recipe.joint_batch
    batches = SceneBatches(
        open_store(folder / "scenes"), recipe, batch_size, stream, None if stage == "vision" else tokenizer
    )
    loader = DataLoader(batches, batch_size=None, num_workers=recipe.loader_processes, pin_memory=device.type == "cuda")
    words = torch.tensor([IMAGE, *category_tokens(tokenizer)], device=device)
    tokens_of_answers = [encode(tokenizer, f" {word}")[0] for word in ("Yes", "No", "left", "right")]
    answers = torch.tensor(tokens_of_answers, device=device)
    prefix = len([BOS, *encode(tokenizer, "USER: ")])
    optimiser = make_optimiser(model, recipe, stage)
    checkpoint = folder / "checkpoint.safetensors"
    steps = 0
    if (start > 0 or stage == "finish") and checkpoint.is_file():
        load_moments(checkpoint, model, optimiser)
        steps = read_progress(checkpoint)["steps"]
    elif stage == "joint" and rank == 0:
        start_matching(model, words[1:], recipe.seed)
    budget = 60 * getattr(recipe, f"{stage}_minutes")
    peak = recipe.vision_rate if stage == "vision" else recipe.joint_rate
    reporter = Reporter(folder, stage, recipe.workers * batch_size, budget) if rank == 0 else None
    begun = time.monotonic() - start
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    for batch in loader:
        elapsed = time.monotonic() - begun
        if elapsed >= budget:
            break
        first, last = SCHEDULE[stage]
        rate = learning_rate(peak, first + (last - first) * elapsed / budget, steps)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        batch = batch.to(device)
        if stage == "vision":
            loss, figures = vision_step(model, batch, words, answers, recipe)
        else:
            loss, figures = joint_step(model, batch, words, answers, recipe, prefix)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        steps += 1
        if reporter is not None:
            reporter.step(elapsed, steps, rate, figures, model, optimiser)
    if reporter is not None:
        reporter.finish(steps, model, optimiser)


@dataclass
class _Due:
    """Seconds of the stage at which the next line and the next checkpoint are due, and the snapshots that are made."""

    log: float
    checkpoint: float
    kept: set[float]


class Reporter:
    """Progress of one stage: a line on the screen and in ``log.jsonl``, checkpoints and snapshots."""

    def __init__(self, folder: Path, stage: str, images_per_step: int, budget: float) -> None:
        self.folder, self.stage, self.images_per_step, self.budget = folder, stage, images_per_step, budget
        self.means: dict[str, float] = {}
        self._due: _Due | None = None
        self.parts = SNAPSHOTS.get(stage, ())

    def step(
        self,
        elapsed: float,
        steps: int,
        rate: float,
        figures: dict[str, float],
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        """Take in one step's figures and write what is due."""
        due = self._due
        if due is None:
            kept = {part for part in self.parts if elapsed >= part * self.budget}
            due = self._due = _Due(elapsed + LOG_SECONDS, elapsed + CHECKPOINT_SECONDS, kept)
        for name, value in figures.items():
            if not math.isnan(value):
                self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value
        if elapsed >= due.log:
            due.log = elapsed + LOG_SECONDS
            self._log(elapsed, steps, rate)
        if elapsed >= due.checkpoint:
            due.checkpoint = elapsed + CHECKPOINT_SECONDS
            self._save(elapsed, steps, model, optimiser)
        for part in self.parts[:-1]:
            if part not in due.kept and elapsed >= part * self.budget:
                due.kept.add(part)
                self._snapshot(part, elapsed, steps, model)

    def finish(self, steps: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Write the last checkpoint, and the last snapshot of the joint stage."""
        self._log(self.budget, steps, 0.0)
        self._save(self.budget, steps, model, optimiser)
        if self.parts:
            self._snapshot(1.0, self.budget, steps, model)

    def _progress(self, elapsed: float, steps: int) -> dict[str, float | int | str]:
        views = steps * self.images_per_step
        return {"stage": self.stage, "elapsed": round(elapsed, 1), "steps": steps, "views": views}

    def _log(self, elapsed: float, steps: int, rate: float) -> None:
        line = self._progress(elapsed, steps) | {"budget": round(self.budget, 1), "rate": rate}
        line |= {name: round(value, 4) for name, value in self.means.items()}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = "  ".join(f"{name} {value:.3f}" for name, value in self.means.items())
        percent = 100 * elapsed / self.budget
        print(f"{self.stage} {percent:5.1f} %  step {steps}  views {line['views']}  {shown}", flush=True)

    def _save(self, elapsed: float, steps: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        path = self.folder / "checkpoint.safetensors"
        save_checkpoint(path, model, optimiser, self._progress(elapsed, steps))

    def _snapshot(self, part: float, elapsed: float, steps: int, model: nn.Module) -> None:
        path = self.folder / "snapshots" / f"{self.stage}_{round(100 * part):03d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, model, None, self._progress(elapsed, steps))


def restore(folder: Path, model: LlavaForConditionalGeneration) -> tuple[str, float]:
    """Load the last checkpoint, if any; the stage to go on with and the seconds of it already used."""
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.is_file():
        return STAGES[0], 0.0
    load_weights(checkpoint, model)
    progress = read_progress(checkpoint)
    return progress["stage"], progress["elapsed"]
