"""The grid of visual tokens of every image, from what the processor said, never from a table of token counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Families whose visual tokens of one image are several tiles, which have no common grid.
_TILED = {
    "llava_next",
    "llava_onevision",
    "idefics2",
    "idefics3",
    "smolvlm",
    "internvl",
    "aya_vision",
    "cohere2_vision",
    "llama4",
    "molmo2",
}


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
    grid: tuple[int, int]
    places: Tensor


def place_images(model: Any, inputs: Mapping[str, Any], visual: Tensor, method: str) -> list[PlacedImage]:
    """Every image of a batch with its grid and its places in the prompt.

    Args:
        model: knows how many patches it merges into one token.
        inputs: of `generate`: `image_grid_thw`, `image_sizes` or `pixel_values` say how large the images are.
        visual: [B, P] bool visual mask.
        method: who asks, for error messages.

    Raises:
        ValueError: the images have no single grid (tiles, videos), or the tokens do not match the grids.
    """
    grids = _grids(model, inputs, int(visual.sum()), method)
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


def _grids(model: Any, inputs: Mapping[str, Any], tokens: int, method: str) -> list[tuple[int, int]]:
    family = model.config.model_type
    vision = getattr(model.config, "vision_config", None)
    if family in _TILED:
        raise ValueError(
            f"{method} needs one grid of visual tokens per image, and {family} cuts its images into tiles; "
            "use a model without tiling (llava, qwen2_vl, gemma3, paligemma, mistral3, ...)"
        )
    if isinstance(inputs.get("image_grid_thw"), Tensor):
        merge = getattr(vision, "spatial_merge_size", 1)
        sizes = inputs["image_grid_thw"].tolist()
        if any(frames != 1 for frames, _, _ in sizes):
            raise ValueError(f"{method} works on pictures, not on videos")
        return [(height // merge, width // merge) for _, height, width in sizes]
    pixels = inputs.get("pixel_values")
    if isinstance(inputs.get("image_sizes"), Tensor):
        side = vision.patch_size * getattr(model.config, "spatial_merge_size", 1)
        return [(height // side, width // side) for height, width in inputs["image_sizes"].tolist()]
    if not isinstance(pixels, Tensor) or pixels.dim() != 4:
        raise ValueError(f"{method} cannot tell the patch grid of {family}'s images from these inputs")
    each, rest = divmod(tokens, pixels.shape[0])
    height, width = pixels.shape[-2:]
    rows = round((each * height / width) ** 0.5)
    if rest or rows == 0 or rows * (each // rows) != each or rows * width != (each // rows) * height:
        raise ValueError(
            f"{method}: {tokens} visual tokens of {pixels.shape[0]} images of {height} x {width} pixels make no grid"
        )
    return [(rows, each // rows)] * pixels.shape[0]
