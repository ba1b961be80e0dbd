"""Which heads look at the picture most, for methods that take a list of heads."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlm_guard.families.head_list import head_list
from vlm_guard.guard import wrap


def heads_by_visual_share(model: nn.Module, inputs: Mapping[str, Any], count: int, layers: str = "all") -> str:
    """The `count` heads that put most attention on visual tokens when they predict the first token.

    Args:
        model: an unguarded model.
        inputs: prompts with images, as for `generate`; the shares are averaged over its rows.
        count: how many heads.
        layers: the layers to choose from.

    Returns:
        Items for the option `heads` of SoftPAG, ACT or ZeroTuning.
    """
    with wrap(model, None, "none") as guard, guard.trace(layers) as trace:
        guard.generate(**inputs, max_new_tokens=1, do_sample=False)
        visual = guard.state.visual
    shares = trace.visual_share(visual)[0].mean(1)
    chosen = torch.zeros(shares.numel(), dtype=torch.bool)
    chosen[shares.flatten().topk(min(count, shares.numel())).indices] = True
    return head_list(dict(zip(trace.layers, chosen.view(shares.shape))))
