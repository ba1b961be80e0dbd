"""Pixel inputs of a model with every picture changed at random, whatever way the pictures are laid out in them."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.methods.ritual.random_change import draw_change
from vlm_guard.methods.shared.picture_parts import image_areas, image_grid


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelScale:
    """How the values of a picture became pixel inputs: (value - mean) / std, with values from 0 to 1.

    Attributes:
        mean: [3, 1, 1]. std: [3, 1, 1].
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, processor: Any) -> "PixelScale":
        """That of a processor.

        Raises:
            ValueError: it has no image processor that says so.
        """
        settings = getattr(processor, "image_processor", None)
        if settings is None:
            raise ValueError(
                "ritual changes the pictures behind the pixel inputs, and takes their scale from the processor's "
                f"image_processor, which {type(processor).__name__} has none of"
            )
        normalised = getattr(settings, "do_normalize", False)
        mean, std = (getattr(settings, name, None) if normalised else None for name in ("image_mean", "image_std"))
        # Without a rescale pixels go from 0 to 255.
        whole = 1.0 if getattr(settings, "do_rescale", True) else 1 / 255
        values = ((mean or [0.0] * 3), (std or [1.0] * 3))
        scaled = (torch.tensor([float(value) * whole for value in channel]).view(3, 1, 1) for channel in values)
        return cls(mean=next(scaled), std=next(scaled))


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureChange:
    """A random change for each picture, drawn from the picture itself, so that it is the same in any batch.

    Attributes:
        names: the changes to draw from.
        seed: one more number that the draw depends on.
        scale: of the pixel inputs.
        drawn: the names of the changes of all pictures, in order; grows.
    """

    names: tuple[str, ...]
    seed: int
    scale: PixelScale
    drawn: list[str]

    def changed(self, name: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any) -> Tensor:
        """A pixel input with its pictures changed, of the same shape and type.

        Args:
            name: of the input.
            pixels: [..., 3, H, W] pictures or tiles, or [patches, values] packed with a grid beside them.
            inputs: what `generate` was given.
            config: of the model.

        Raises:
            ValueError: the pictures lie in it in another way.
        """
        grid = image_grid(name, pixels, inputs) if pixels.dim() == 2 else None
        if grid is not None:
            merges = inputs.get("video_merge_sizes" if "video" in name else "image_merge_sizes")
            return self._changed_packed(pixels, grid.tolist(), merges, config.vision_config)
        if pixels.dim() < 4 or pixels.shape[-3] != 3:
            raise ValueError(
                f"ritual changes whole pictures, and those of {config.model_type} come in as patches "
                f"({name} {list(pixels.shape)}) whose order it does not know; vcd and icd work with this model"
            )
        areas = image_areas(pixels, inputs)
        return torch.stack([self._changed_tiles(image, area) for image, area in zip(pixels, areas)])

    def _changed_tiles(self, image: Tensor, areas: list[tuple[int, int]] | None) -> Tensor:
        """A picture [3, H, W] or its tiles or frames [..., 3, H, W]; padding, and tiles of nothing else, stay."""
        tiles, change = image.clone().reshape(-1, *image.shape[-3:]), None
        for index, tile in enumerate(tiles):
            height, width = tile.shape[-2:] if areas is None else areas[min(index, len(areas) - 1)]
            inner = tile[:, :height, :width]
            if not bool(inner.any()):
                continue
            change = change or self._draw(inner)
            tile[:, :height, :width] = self._apply(change, inner)
        return tiles.view_as(image)

    def _changed_packed(self, pixels: Tensor, grid: list[list[int]], merges: Any, vision: Any) -> Tensor:
        """Patches of pictures, packed in groups of merge x merge, each [3, frames of a patch, size, size]."""
        size = vision.patch_size
        depth = pixels.shape[1] // (3 * size * size)
        sizes = [vision.spatial_merge_size] * len(grid) if merges is None else merges.tolist()
        parts = []
        for patches, (frames, rows, columns), merge in zip(
            pixels.split([frames * rows * columns for frames, rows, columns in grid]), grid, sizes
        ):
            shape = (frames, rows // merge, columns // merge, merge, merge, 3, depth, size, size)
            # To frames x 3 x (rows of groups, rows in a group, rows in a patch) x the same of columns, and back.
            order = (0, 6, 5, 1, 3, 7, 2, 4, 8)
            apart = patches.view(shape).permute(order)
            picture = apart.reshape(frames * depth, 3, rows * size, columns * size)
            changed = self._apply(self._draw(picture[0]), picture).view(apart.shape)
            back = [order.index(dim) for dim in range(len(order))]
            parts.append(changed.permute(back).reshape(patches.shape))
        return torch.cat(parts)

    def _draw(self, picture: Tensor) -> Any:
        """The change of a picture [3, H, W]."""
        content = zlib.crc32(picture.detach().float().cpu().contiguous().numpy().tobytes())
        name, change = draw_change(self.names, content * 1_000_003 + self.seed)
        self.drawn.append(name)
        return change

    def _apply(self, change: Any, pictures: Tensor) -> Tensor:
        """The changed pictures [..., 3, H, W] in the values of the model."""
        mean, std = self.scale.mean.to(pictures.device), self.scale.std.to(pictures.device)
        values = (pictures.float() * std + mean).clamp(0, 1)
        return ((change(values) - mean) / std).to(pictures.dtype)
