"""Pictures behind a model's pixel inputs, and regions cut out of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# A crop is magnified until it fills the picture one way; a sliver would become enormous the other way.
LONGEST_SIDE = 4


def flat_pictures(images: Any) -> list[Image.Image]:
    """Pictures given as one, as a list, or as a list for each row, as RGB in order.

    Raises:
        TypeError: something else is among them.
    """
    if isinstance(images, Image.Image):
        return [images.convert("RGB")]
    if not isinstance(images, list | tuple):
        raise TypeError(f"images must be PIL pictures, or lists of them, given {type(images).__name__}")
    return [picture for item in images for picture in flat_pictures(item)]


def recover_pictures(inputs: Mapping[str, Any], processor: Any, method: str) -> list[Image.Image]:
    """The pictures as the model saw them: resized, from normalised pixels.

    Exact for processors that resize every picture to one size; detail beyond that size is gone.

    Raises:
        ValueError: the pixels are not [N, 3, H, W], so that they cannot be turned back.
    """
    pixels, settings = inputs.get("pixel_values"), processor.image_processor
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"{method} needs the pictures themselves, which cannot be recovered from this model's pixel inputs: "
            "pass them as generate(..., images=[...])"
        )
    values = pixels.detach().float().cpu()
    if settings.do_normalize:
        mean, std = (torch.tensor(item).view(1, 3, 1, 1) for item in (settings.image_mean, settings.image_std))
        values = values * std + mean
    if settings.do_rescale:
        values = values / settings.rescale_factor
    arrays = values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


def seen_part(picture: Image.Image, settings: Any) -> Image.Image:
    """The part of a picture that its image processor shows to the model: a centre crop cuts the rest off."""
    if not getattr(settings, "do_center_crop", False) or not getattr(settings, "do_resize", False):
        return picture
    size, crop = dict(settings.size), dict(settings.crop_size)
    if "shortest_edge" not in size:
        return picture
    scale = min(picture.size) / size["shortest_edge"]
    width, height = (min(side, crop[name] * scale) for side, name in zip(picture.size, ("width", "height")))
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return picture.crop((round(left), round(top), round(left + width), round(top + height)))


def magnify_regions(
    picture: Image.Image, kept: NDArray[np.bool_], *, blacken: bool = True
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The picture cut to the bounding box of `kept` [H, W] bool and magnified to fill the picture.

    Args:
        picture: as the model sees it.
        kept: the pixels that matter.
        blacken: whether what is not kept becomes black within the box, too.

    Returns:
        The new picture, and the box (left, top, right, bottom) in pixels of the old one.
    """
    rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    shown = picture.convert("RGB")
    if blacken:
        shown = Image.fromarray(np.asarray(shown) * kept[..., None].astype(np.uint8))
    crop = shown.crop(box)
    factor = max(picture.width / crop.width, picture.height / crop.height)
    factor = min(factor, LONGEST_SIDE * max(picture.size) / max(crop.size))
    if factor == 1:
        return crop, box
    size = (max(1, round(crop.width * factor)), max(1, round(crop.height * factor)))
    return crop.resize(size, Image.Resampling.LANCZOS), box


def stretch(values: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float64]:
    """[height, width] bilinear enlargement of a grid [rows, columns]; `size` is (width, height)."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR), np.float64)
