"""From nothing to a trained model in a folder: scenes, tokenizer, two stages of training, and the exported files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.multiprocessing
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_guard.eval.training.checkpoints import load_weights
from vlm_guard.eval.training.loop import CHILD_ENVIRONMENT, STAGES, restore, train_stage
from vlm_guard.eval.training.model import new_model, new_processor
from vlm_guard.eval.training.recipe import Recipe
from vlm_guard.eval.training.scene_store import build_store
from vlm_guard.eval.training.tokenizer import build_tokenizer
from vlm_guard.whole_files import write_atomically


def _prepare(folder: Path, recipe: Recipe) -> None:
    """Write the recipe, the processor and the scenes, or check that an interrupted run has the same recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    wanted = recipe.as_json()
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in wanted if found.get(name) != wanted[name])
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(differing)}); give the same settings to go on "
                f"with it, or another folder."
            )
    else:
        new_processor(build_tokenizer()).save_pretrained(folder / "model")
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")
    build_store(folder / "scenes", recipe.scenes, workers=max(recipe.workers, recipe.loader_processes))


def train(folder: Path, recipe: Recipe, device: str) -> Path:
    """Train, or go on with an interrupted run; returns the folder of the exported model (last snapshot).

    Args:
        folder: Working folder; holds scenes (28 kB each), log, checkpoint and snapshots.
        recipe: The run's numbers.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: ``folder`` holds a run with another recipe.
        RuntimeError: a worker process died.
    """
    os.environ.update(CHILD_ENVIRONMENT if device == "cpu" else {"TOKENIZERS_PARALLELISM": "false"})
    _prepare(folder, recipe)
    model = new_model(recipe.seed)
    stage, elapsed = restore(folder, model)
    # As a module: transformers' own `to` takes the same, but is declared to take a model.
    nn.Module.to(model, device)
    for name in STAGES[STAGES.index(stage) :]:
        if device == "cpu":
            model.share_memory()
            torch.multiprocessing.start_processes(
                train_stage,
                args=(model, recipe, name, folder, elapsed),
                nprocs=recipe.workers,
                start_method="spawn",
            )
        else:
            train_stage(0, model, recipe, name, folder, elapsed)
        elapsed = 0.0
    return export(folder, folder / "snapshots" / "finish_100.safetensors")


def export(folder: Path, snapshot: Path) -> Path:
    """Write a snapshot's weights in bfloat16 beside the processor, as ``from_pretrained`` expects them."""
    model: LlavaForConditionalGeneration = new_model(0)
    load_weights(snapshot, model)
    target = folder / "model"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(target)
    new_processor(tokenizer).save_pretrained(target)
    return target
