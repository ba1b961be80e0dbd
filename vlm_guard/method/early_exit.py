"""A forward pass that stops once what it was run for is known."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class StopForward(Exception):
    """Raised inside a forward pass by whoever has seen enough; `run_until_stopped` catches it."""


def without_double_prompt(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a forward pass without ids that are also given as embeddings: models take one of them."""
    doubled = inputs.get("inputs_embeds") is not None
    return {name: value for name, value in inputs.items() if not (doubled and name == "input_ids")}


def run_until_stopped(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Run the model's forward without a cache and without gradients until something raises `StopForward`.

    Hooks on the model as a whole do not run, those inside it do. The cache in `inputs`, if any, is not touched.
    """
    given = {
        name: value
        for name, value in without_double_prompt(inputs).items()
        if name not in ("past_key_values", "use_cache")
    }
    try:
        with torch.no_grad():
            model.forward(**given, use_cache=False)
    except StopForward:
        return
