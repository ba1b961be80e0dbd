"""Layer ranges as text: `2-`, `1,last:14`, `50%-`, `image`."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_guard.method.target import GuardTarget

_ITEM = re.compile(r"(?:last:(?P<last>\d+)|(?P<start>\d+%?)(?P<dash>-)?(?P<stop>\d+%?)?)")


def select_layers(spec: str, depth: int) -> tuple[int, ...]:
    """The layer indices that a range names in a decoder of `depth` layers, ascending.

    Items are separated by commas: `5` one layer, `2-31` both ends included, `2-` up to the last, `last:14` the last
    fourteen, `all`, `none`. A number with a percent sign is a relative depth: `50%-` is the upper half. Absolute
    indices beyond the last layer are dropped, so that a published range for 32 layers is usable on fewer.

    Raises:
        ValueError: the text cannot be read, or it selects nothing (other than `none`).
    """
    text = spec.replace(" ", "").lower()
    if text == "none":
        return ()
    selected: set[int] = set()
    for item in text.split(","):
        selected |= _select_item(item, depth, spec)
    kept = tuple(sorted(layer for layer in selected if layer < depth))
    if not kept:
        raise ValueError(f"layers {spec!r} selects no layer of a decoder with {depth} layers (0 to {depth - 1})")
    return kept


def select_layers_of(spec: str, target: "GuardTarget") -> tuple[int, ...]:
    """`select_layers` for a model, where `image` stands for the layers that its profile says look at the image.

    Raises:
        ValueError: as `select_layers`, or `image` is asked for and no profile says which layers these are.
    """
    if "image" in spec:
        range_ = None if target.profile is None else target.profile.value("image_layers")
        if range_ is None:
            raise ValueError(
                f"layers {spec!r} needs to know which layers of this {target.architecture.model_type} model look at "
                "the image, and no profile says so. Run 'vlm-guard calibrate MODEL' once, or name the layers"
            )
        spec = spec.replace("image", range_)
    return select_layers(spec, target.architecture.depth)


def select_attending_layers(spec: str, target: "GuardTarget") -> tuple[int, ...]:
    """Those of `select_layers_of` that have attention; in some families others are convolutions or linear.

    Raises:
        ValueError: as `select_layers_of`.
    """
    attending = {entry.index for entry in target.architecture.layers}
    return tuple(layer for layer in select_layers_of(spec, target) if layer in attending)


def layer_ranges(layers: Sequence[int]) -> str:
    """Ascending layer indices as a range that `select_layers` reads: 1, 2, 3, 7 as `1-3,7`."""
    runs: list[list[int]] = []
    for number in layers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _select_item(item: str, depth: int, spec: str) -> set[int]:
    if item == "all":
        return set(range(depth))
    match = _ITEM.fullmatch(item)
    if match is None or (match["stop"] and not match["dash"]):
        raise ValueError(f"cannot read layers {spec!r}; write for example '2-', '1,last:14', '8-20', '50%-' or 'all'")
    if match["last"]:
        return set(range(max(0, depth - int(match["last"])), depth))
    start = _index(match["start"], depth)
    if not match["dash"]:
        return {start}
    stop = depth if match["stop"] is None else _index(match["stop"], depth) + (not match["stop"].endswith("%"))
    return set(range(start, stop))


def _index(text: str, depth: int) -> int:
    return round(int(text[:-1]) * depth / 100) if text.endswith("%") else int(text)
