"""Chosen heads as text: `2:0,2:5,7:1-3`, a layer and its query heads. Every option and tool writes them so."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_guard.families.layers import layer_ranges

if TYPE_CHECKING:
    from vlm_guard.method.target import GuardTarget

NAMED = ("retrieval", "image", "dormant", "distant")
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


def select_heads_of(spec: str, target: "GuardTarget") -> dict[int, Tensor] | None:
    """`select_heads` for a model, where a name stands for the list that its profile has by it.

    "retrieval" are heads that look at the patch of the word that comes, "image" those that look at the picture most,
    "dormant" those that rest on one key, "distant" those that add what the other heads of their layer do not
    (`vlm-guard inspect MODEL --heads --save` measures them).

    Raises:
        ValueError: as `select_heads`, or a name is given and no profile has its list, or the list is empty.
    """
    name = spec.strip()
    if name in NAMED:
        listed = None if target.profile is None else target.profile.value(f"heads_{name}")
        if not listed:
            none = "no profile says which they are" if listed is None else "its profile says that it has none"
            raise ValueError(
                f"heads={name!r} needs the {name} heads of this {target.architecture.model_type} model, and {none}. "
                "Run 'vlm-guard inspect MODEL --heads --save' once, or list heads such as '2:0,2:5,7:1-3'"
            )
        spec = listed
    return select_heads(spec, target.architecture.depth, target.architecture.heads)


def head_list(heads: Mapping[int, Tensor]) -> str:
    """Chosen heads, by layer a [H] bool tensor, as text that `select_heads` reads: `2:0,2:5,7:1-3`."""
    runs = (
        (layer, run)
        for layer, chosen in sorted(heads.items())
        for run in layer_ranges(chosen.nonzero().flatten().tolist()).split(",")
        if run
    )
    return ",".join(f"{layer}:{run}" for layer, run in runs)
