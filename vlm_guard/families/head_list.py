"""Chosen heads as text: `2:0,2:5,7:1-3`, a layer and its query heads. Every option and tool writes them so."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vlm_guard.families.layers import layer_ranges

_ITEM = re.compile(r"(?P<layer>\d+):(?P<start>\d+)(?:-(?P<stop>\d+))?")


def select_heads(spec: str, depth: int, heads: int) -> dict[int, Tensor] | None:
    """The heads that a list names, or None for every head of every layer.

    Args:
        spec: items `layer:head` or `layer:first-last`, separated by commas; "all" or nothing for every head.
        depth: number of decoder layers.
        heads: query heads of a layer.

    Returns:
        By layer a [H] bool tensor, True for the named heads. Layers that are not named are absent.

    Raises:
        ValueError: the text cannot be read, or names a layer or head that the model does not have.
    """
    text = spec.replace(" ", "")
    if text in ("", "all"):
        return None
    chosen: dict[int, Tensor] = {}
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            near = re.sub(r"(\d+)\.(\d+)", r"\1:\2", text)
            hint = f" Did you mean {near!r}?" if near != text else ""
            raise ValueError(f"cannot read heads {spec!r}; write 'layer:head' items such as '2:0,2:5,7:1-3'.{hint}")
        layer, start = int(match["layer"]), int(match["start"])
        stop = int(match["stop"] or start)
        if layer >= depth or stop >= heads or start > stop:
            raise ValueError(f"heads {item!r} of {spec!r}: layers are 0 to {depth - 1}, heads 0 to {heads - 1}")
        chosen.setdefault(layer, torch.zeros(heads, dtype=torch.bool))[start : stop + 1] = True
    return chosen


def head_list(heads: Mapping[int, Tensor]) -> str:
    """Chosen heads, by layer a [H] bool tensor, as text that `select_heads` reads: `2:0,2:5,7:1-3`."""
    runs = (
        (layer, run)
        for layer, chosen in sorted(heads.items())
        for run in layer_ranges(chosen.nonzero().flatten().tolist()).split(",")
        if run
    )
    return ",".join(f"{layer}:{run}" for layer, run in runs)
