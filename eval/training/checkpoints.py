"""Checkpoints: one safetensors file with weights, optimiser moments and progress; never half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer | None, progress: dict[str, Any]
) -> None:
    """Write weights, AdamW's moments and ``progress``; without ``optimiser`` only weights (a snapshot)."""
    tensors = {}
    for name, weight in model.named_parameters():
        tensors[f"weight.{name}"] = weight.detach().cpu().clone()
        state = optimiser.state.get(weight, {}) if optimiser is not None else {}
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                tensors[f"{moment}.{name}"] = state[moment].detach().cpu().clone()
        if "step" in state:
            tensors[f"step.{name}"] = torch.as_tensor(float(state["step"]))
    temporary = path.with_name(f"{path.name}.new")
    save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
    temporary.replace(path)


def read_progress(path: Path) -> dict[str, Any]:
    """The ``progress`` of a checkpoint, without its tensors."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["progress"])


@torch.no_grad()
def load_weights(path: Path, model: nn.Module) -> None:
    """Copy a checkpoint's weights into ``model``."""
    with safe_open(path, "pt") as file:
        for name, weight in model.named_parameters():
            weight.copy_(file.get_tensor(f"weight.{name}"))


def load_moments(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Restore AdamW's moments for the parameters that ``optimiser`` holds; absent ones start from nothing."""
    held = {weight for group in optimiser.param_groups for weight in group["params"]}
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        for name, weight in model.named_parameters():
            if weight in held and f"exp_avg.{name}" in keys:
                optimiser.state[weight] = {
                    "step": file.get_tensor(f"step.{name}"),
                    "exp_avg": file.get_tensor(f"exp_avg.{name}").to(weight.device),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(weight.device),
                }
