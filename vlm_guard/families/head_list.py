"""Chosen heads as text: `2:0,2:5,7:1-3`, a layer and its query heads."""

import re

import torch
from torch import Tensor

_ITEM = re.compile(r"(?P<layer>\d+):(?P<start>\d+)(?:-(?P<stop>\d+))?")


def select_heads(spec: str, depth: int, heads: int) -> dict[int, Tensor] | None:
    """The heads that a list names, or None for the empty list, which stands for every head of every layer.

    Args:
        spec: items `layer:head` or `layer:first-last`, separated by commas.
        depth: number of decoder layers.
        heads: query heads of a layer.

    Returns:
        By layer a [H] bool tensor, True for the named heads. Layers that are not named are absent.

    Raises:
        ValueError: the text cannot be read, or names a layer or head that the model does not have.
    """
    text = spec.replace(" ", "")
    if not text:
        return None
    chosen: dict[int, Tensor] = {}
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(f"cannot read heads {spec!r}; write 'layer:head' items, for example '2:0,2:5,7:1-3'")
        layer, start = int(match["layer"]), int(match["start"])
        stop = int(match["stop"] or start)
        if layer >= depth or stop >= heads or start > stop:
            raise ValueError(f"heads {item!r} of {spec!r}: layers are 0 to {depth - 1}, heads 0 to {heads - 1}")
        chosen.setdefault(layer, torch.zeros(heads, dtype=torch.bool))[start : stop + 1] = True
    return chosen
