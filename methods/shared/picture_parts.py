"""Which parts of a model's pixel inputs belong to which image, and where an image ends and its padding begins."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def image_grid(name: str, pixels: Tensor, inputs: Mapping[str, Any]) -> Tensor | None:
    """[N, 3] frames, patch rows and patch columns of every image whose patches are packed; None for other inputs.

    Args:
        name: of the pixel input, "pixel_values" or "pixel_values_videos".
        pixels: its values; packed ones are [patches of all images, values of a patch].
        inputs: what `generate` was given.
    """
    grid = inputs.get("video_grid_thw" if "video" in name else "image_grid_thw")
    return grid if isinstance(grid, Tensor) and int(grid.prod(-1).sum()) == pixels.shape[0] else None


def image_lengths(name: str, pixels: Tensor, inputs: Mapping[str, Any]) -> list[int]:
    """How many entries of the first dimension belong to each image (several where patches are packed)."""
    grid = image_grid(name, pixels, inputs)
    return [1] * pixels.shape[0] if grid is None else grid.prod(-1).tolist()


def image_areas(pixels: Tensor, inputs: Mapping[str, Any]) -> list[list[tuple[int, int]] | None]:
    """Height and width without padding of every tile, where the processor padded images to a common size."""
    mask, sizes = inputs.get("pixel_attention_mask"), inputs.get("image_sizes")
    if isinstance(mask, Tensor) and mask.dim() == 4 and pixels.dim() == 5:
        heights, widths = mask.bool().any(-1).sum(-1), mask.bool().any(-2).sum(-1)
        return [list(zip(high, wide)) for high, wide in zip(heights.tolist(), widths.tolist())]
    if isinstance(sizes, Tensor) and pixels.dim() == 4 and sizes.shape == (pixels.shape[0], 2):
        return [[(height, width)] for height, width in sizes.tolist()]
    whole = inputs.get("pixel_mask")
    if isinstance(whole, Tensor) and whole.dim() == 3 and whole.shape == (pixels.shape[0], *pixels.shape[-2:]):
        heights, widths = whole.bool().any(-1).sum(-1), whole.bool().any(-2).sum(-1)
        return [[(height, width)] for height, width in zip(heights.tolist(), widths.tolist())]
    return [None] * pixels.shape[0]
