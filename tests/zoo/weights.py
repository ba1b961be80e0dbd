"""Random weights that make a tiny model behave like a model: peaked attention, logits that depend on the input."""

from __future__ import annotations

import re

import torch
from torch import nn

from zoo.prompts import generator

# With inputs of unit variance a gain g on both q and k gives attention logits of standard deviation g * g.
QUERY_KEY_GAIN = 1.5
OUTPUT_LOGIT_SCALE = 2.0

QUERY_KEY = re.compile(r"(q_proj|k_proj|wq|wk|query|key|query_key_value|qkv|att_proj|c_attn)\.weight$")
QUERY_KEY_NORM = re.compile(r"[qk]_(layer)?norm\.")


def _spread(name: str, parameter: nn.Parameter, is_embedding: bool, is_output: bool) -> float:
    """Standard deviation for a parameter with two dimensions or more."""
    if is_output:
        return OUTPUT_LOGIT_SCALE * parameter.shape[-1] ** -0.5
    if is_embedding:
        return 0.5
    fan_in = parameter[0].numel()
    return (QUERY_KEY_GAIN if QUERY_KEY.search(name) else 1.0) * fan_in**-0.5


@torch.no_grad()
def randomise(model: nn.Module, key: tuple[object, ...]) -> None:
    """Replace every parameter of ``model`` in place, the same for the same ``key`` in every dtype.

    Matrices are drawn with variance 1 / fan-in, query and key projections wider, so that attention is far from
    uniform; vectors (norms, biases) keep their initial value plus noise, so that a norm that is
    skipped or an offset that is ignored shows.
    """
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    output = model.get_output_embeddings()
    output_weight = output.weight if output is not None else None
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator("weights", *key, name))
        if name.endswith("sinks"):
            value = noise
        elif "gate" in name and parameter.numel() == 1:
            value = 0.8 + 0.1 * noise  # many are initialised to zero, which would switch the images off
        elif QUERY_KEY_NORM.search(name) and name.endswith("weight"):
            value = parameter.float() + QUERY_KEY_GAIN - 1.0 + 0.1 * noise  # also right where 1 is added to the weight
        elif parameter.dim() < 2 or "norm" in name.lower():
            value = parameter.float() + 0.1 * noise
        else:
            value = noise * _spread(name, parameter, parameter in embeddings, parameter is output_weight)
        parameter.copy_(value)
