"""The grid of visual tokens of every image, from what the processor said, never from a table of token counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from vlm_guard.families.family import entry_of
from vlm_guard.families.image_grids import Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedImage:
    """One image of a prompt.

    Attributes:
        row: the batch row it belongs to.
        index: its number among all images of the batch.
        grid: (rows, columns) of its visual tokens.
        places: [rows * columns] long, their positions in the prompt, row by row of the grid.
    """

    row: int
    index: int
    grid: Grid
    places: Tensor


def place_images(model: Any, inputs: Mapping[str, Any], visual: Tensor, method: str) -> list[PlacedImage]:
    """Every image of a batch with its grid and its places in the prompt.

    Args:
        model: its family's entry knows how images become visual tokens.
        inputs: of `generate`: `image_grid_thw`, `image_sizes` or `pixel_values` say how large the images are.
        visual: [B, P] bool visual mask.
        method: who asks, for error messages.

    Raises:
        ValueError: the images have no single grid (tiles, videos), or the tokens do not match the grids.
    """
    require_grid(model.config, method)
    try:
        grids = entry_of(model.config.model_type).patch_grid(model.config, inputs, int(visual.sum()))
    except ValueError as error:
        raise ValueError(f"{method}: {error}") from None
    placed, index = [], 0
    for row in range(visual.shape[0]):
        places = visual[row].nonzero().flatten().cpu()
        start = 0
        while start < len(places) and index < len(grids):
            size = grids[index][0] * grids[index][1]
            placed.append(PlacedImage(row=row, index=index, grid=grids[index], places=places[start : start + size]))
            start, index = start + size, index + 1
        if start != len(places):
            raise ValueError(f"{method}: row {row} has {len(places)} visual tokens, its images' grids make {start}")
    if index != len(grids):
        raise ValueError(f"{method}: {len(grids)} images were given, the prompt has placeholders for {index}")
    return placed


def require_grid(config: PreTrainedConfig, method: str) -> None:
    """Refuse a family whose visual tokens form no grid.

    Raises:
        ValueError: with the reason its entry gives.
    """
    reason = entry_of(config.model_type).no_grid
    if reason:
        raise ValueError(
            f"{method} needs one grid of visual tokens per image, and {config.model_type} {reason}; "
            "use a model with one grid per image (llava, qwen2_vl, gemma3, paligemma, mistral3, ...)"
        )
