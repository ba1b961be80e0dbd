"""How many rows and columns of visual tokens each image has, told from what the processor gave; for the entries."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

Grid = tuple[int, int]
PatchGrid = Callable[[PreTrainedConfig, Mapping[str, Any], int], list[Grid]]
"""From the model's configuration, the inputs of `generate` and the number of visual tokens in the whole batch to (rows,
columns) of visual tokens, after merging, of every image in order. Raises ValueError where the inputs do not tell."""

TILES = "cuts its images into tiles"
RESAMPLED = "resamples its images into tokens that belong to no place in the picture"


def grid_of_inputs(config: PreTrainedConfig, inputs: Mapping[str, Any], tokens: int) -> list[Grid]:
    """Whichever of the grids below the inputs describe; the generic family's."""
    if isinstance(inputs.get("image_grid_thw"), Tensor):
        return grid_of_merged_patches(config, inputs, tokens)
    if isinstance(inputs.get("image_sizes"), Tensor):
        return grid_of_sizes(config, inputs, tokens)
    return grid_of_pixels(config, inputs, tokens)


def grid_of_merged_patches(config: PreTrainedConfig, inputs: Mapping[str, Any], tokens: int) -> list[Grid]:
    """Images given as packed patches with `image_grid_thw`, of which squares are merged into a token (Qwen-VL)."""
    if not isinstance(inputs.get("image_grid_thw"), Tensor):
        raise ValueError("the processor's image_grid_thw is needed to tell the grid of every image")
    merge = getattr(config.vision_config, "spatial_merge_size", 1)
    sizes = inputs["image_grid_thw"].tolist()
    if any(frames != 1 for frames, _, _ in sizes):
        raise ValueError("it works on pictures, not on videos")
    return [(height // merge, width // merge) for _, height, width in sizes]


def grid_of_merge_sizes(config: PreTrainedConfig, inputs: Mapping[str, Any], tokens: int) -> list[Grid]:
    """Packed patches with `image_grid_thw` and a merge size for each image in `image_merge_sizes` (VideoLLaMA 3)."""
    if not isinstance(inputs.get("image_merge_sizes"), Tensor):
        raise ValueError("the processor's image_merge_sizes are needed to tell the grid of every image")
    sizes = zip(inputs["image_grid_thw"].tolist(), inputs["image_merge_sizes"].tolist(), strict=True)
    return [(height // merge, width // merge) for (_, height, width), merge in sizes]


def grid_of_sizes(config: PreTrainedConfig, inputs: Mapping[str, Any], tokens: int) -> list[Grid]:
    """Images padded to a common size with their own in `image_sizes` (Pixtral, Mistral 3)."""
    if not isinstance(inputs.get("image_sizes"), Tensor):
        raise ValueError("the processor's image_sizes are needed to tell the grid of every image")
    side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    return [(height // side, width // side) for height, width in inputs["image_sizes"].tolist()]


def grid_of_pixels(config: PreTrainedConfig, inputs: Mapping[str, Any], tokens: int) -> list[Grid]:
    """Images of one size, so of equally many tokens each, laid out in the shape of the picture."""
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.dim() != 4:
        raise ValueError(f"the patch grid of {config.model_type}'s images cannot be told from these inputs")
    each, rest = divmod(tokens, pixels.shape[0])
    height, width = pixels.shape[-2:]
    rows = round((each * height / width) ** 0.5)
    if rest or rows == 0 or rows * (each // rows) != each or rows * width != (each // rows) * height:
        raise ValueError(
            f"{tokens} visual tokens of {pixels.shape[0]} images of {height} x {width} pixels make no grid"
        )
    return [(rows, each // rows)] * pixels.shape[0]
