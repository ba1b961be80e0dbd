"""Where in a picture a thing was read: the patches around the one that says so most clearly."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlm_guard.families.patch_grid import PlacedImage, place_images
from vlm_guard.grounding.mention import Box

SHARE = 0.5
"""Patches belong to a box if their probability is at least so much of the clearest one's."""


def images_by_row(model: Any, inputs: Mapping[str, Any], visual: Tensor) -> list[list[PlacedImage]]:
    """The pictures of each prompt with their grids; empty where this family or this input tells no grid.

    Args:
        model: the model.
        inputs: of `generate`.
        visual: [B, P] bool visual mask.
    """
    try:
        placed = place_images(model, inputs, visual, "a box")
    except ValueError:
        return [[] for _ in visual]
    return [[image for image in placed if image.row == row] for row in range(len(visual))]


def box_around_peak(log_probs: Tensor, images: Sequence[PlacedImage]) -> Box | None:
    """The box of the patches that hang together with the clearest one and are at least `SHARE` as clear.

    Args:
        log_probs: [n] of a prompt's visual tokens, in their order.
        images: the prompt's pictures in order, which have n visual tokens together.
    """
    if not images or sum(len(image.places) for image in images) != len(log_probs):
        return None
    peak, start = int(log_probs.argmax()), 0
    for number, image in enumerate(images):
        size = len(image.places)
        if peak < start + size:
            return _box(log_probs[start : start + size], peak - start, image.grid, number)
        start += size
    return None


def _box(log_probs: Tensor, peak: int, grid: tuple[int, int], number: int) -> Box:
    rows, columns = grid
    clear = (log_probs >= log_probs[peak] + math.log(SHARE)).tolist()
    seen, waiting = {peak}, [peak]
    while waiting:
        row, column = divmod(waiting.pop(), columns)
        for near, beside in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            place = near * columns + beside
            if 0 <= near < rows and 0 <= beside < columns and place not in seen and clear[place]:
                seen.add(place)
                waiting.append(place)
    held = [divmod(place, columns) for place in seen]
    top, bottom = min(row for row, _ in held), max(row for row, _ in held) + 1
    left, right = min(column for _, column in held), max(column for _, column in held) + 1
    return Box(image=number, left=left / columns, top=top / rows, right=right / columns, bottom=bottom / rows)
