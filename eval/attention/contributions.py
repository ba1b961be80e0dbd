"""How far each head stands from the semantic centre of its layer, after Task-KV (arXiv 2501.15113).

What a head adds to the residual stream is its output through its slice of the attention's output projection. The centre
is the mean over the layer's heads, and a head's distance is the length of the difference:

    d_h = | c_h - mean over g of c_g |,      c_h = W_O[:, h] o_h ,

here the mean over the rows that predict an answer, in times of the layer's mean distance. Task-KV calls heads far from
the centre heterogeneous and keeps all their keys, since they carry what others do not; the others gather and rest. Its
abstract says this in words; the formula is this project's reading of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from vlm_guard.families.architecture import Architecture
from vlm_guard.families.layer_parts import output_projection

_ASKER = "the distance of heads"


@contextmanager
def projected_heads(architecture: Architecture) -> Iterator[dict[int, Tensor]]:
    """Inside, what the output projections of the attention layers are given in the latest pass, by layer [L, H * D].

    It is taken there and not behind the softmax, since some families gate or normalise the heads' outputs in between.

    Raises:
        ValueError: an attention module has no output projection by a known name.
    """
    found: dict[int, Tensor] = {}
    projections = {entry.index: output_projection(entry.attention, _ASKER) for entry in architecture.layers}
    hooks = [module.register_forward_pre_hook(partial(_keep, found, layer)) for layer, module in projections.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def head_distances(architecture: Architecture, given: dict[int, Tensor], rows: slice) -> Tensor:
    """[layers, H] float32 distances from the centre, in times of the layer's mean.

    Args:
        architecture: of the model.
        given: of `projected_heads`, of one sequence.
        rows: of the sequence that count.

    Raises:
        ValueError: the heads of a layer do not divide what its projection is given.
    """
    found = [
        _distances(output_projection(entry.attention, _ASKER), given[entry.index][rows], architecture.heads)
        for entry in architecture.layers
    ]
    return torch.stack(found)


@torch.no_grad()
def _distances(projection: nn.Module, rows: Tensor, heads: int) -> Tensor:
    """[H] distances of one layer, from what its projection is given in some rows [R, H * D]."""
    count, width = rows.shape
    if width % heads:
        raise ValueError(f"{_ASKER}: {heads} heads do not divide the {width} numbers that the projection is given")
    alone = rows.new_zeros(heads, count, heads, width // heads)
    each = torch.arange(heads, device=rows.device)
    alone[each, :, each] = rows.view(count, heads, -1).transpose(0, 1)
    # Through the module itself, so that quantised weights count as they are; what it adds for no input is no head's.
    added = (projection(alone.flatten(2)) - projection(torch.zeros_like(rows[:1]))).float()
    distance = (added - added.mean(0)).norm(dim=-1).mean(-1)
    return distance / distance.mean().clamp_min(1e-12)


def _keep(found: dict[int, Tensor], layer: int, module: nn.Module, args: tuple) -> None:
    found[layer] = args[0].detach().reshape(-1, args[0].shape[-1])
