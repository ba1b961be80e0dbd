"""A random change of a picture: a flip, a rotation, other colours, a blur or a crop, drawn from a seed.

Pictures are [..., 3, H, W] with values from 0 to 1, and keep their size.
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

Change = Callable[[Tensor], Tensor]
BLUR_KERNEL = 13
# Shares of red, green and blue in how bright a colour looks (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


def rotated(picture: Tensor, degrees: float) -> Tensor:
    """Turned counter-clockwise around its middle; each pixel is the nearest one, what comes in from outside is 0."""
    flat = picture.reshape(-1, 1, *picture.shape[-2:])
    height, width = flat.shape[-2:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where a pixel comes from, in units of half the picture's sides, which may differ.
    turn = torch.tensor([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
    grid = torch.nn.functional.affine_grid(turn[None], [1, 1, height, width], align_corners=False)
    grid = grid.to(flat.device, flat.dtype).expand(flat.shape[0], -1, -1, -1)
    return grid_sample(flat, grid, mode="nearest", align_corners=False).view_as(picture)


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """Smoothed by a Gaussian of `BLUR_KERNEL` pixels, mirrored at the edges."""
    # A mirror shows less than the whole picture once more.
    reach = min(BLUR_KERNEL // 2, min(picture.shape[-2:]) - 1)
    places = torch.arange(-reach, reach + 1, dtype=picture.dtype, device=picture.device)
    bell = torch.exp(-(places**2) / (2 * sigma**2))
    bell = bell / bell.sum()
    flat = pad(picture.reshape(-1, 1, *picture.shape[-2:]), (reach, reach, reach, reach), mode="reflect")
    return conv2d(conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1)).view_as(picture)


def luma(picture: Tensor) -> Tensor:
    """[..., 1, H, W], how bright each pixel looks."""
    return (picture * picture.new_tensor(LUMA).view(3, 1, 1)).sum(-3, keepdim=True)


def blend(picture: Tensor, other: Tensor, factor: float) -> Tensor:
    """`factor` times the picture and the rest of what it was made from, cut to the range of pictures."""
    return (factor * picture + (1 - factor) * other).clamp(0, 1)


def turn_hue(picture: Tensor, turns: float) -> Tensor:
    """The colours moved along the circle of hues by a share of it; brightness and saturation of HSV stay."""
    red, green, blue = picture.unbind(-3)
    most, least = picture.amax(-3), picture.amin(-3)
    spread = (most - least).clamp_min(1e-12)
    sixth = torch.where(
        most == red,
        (green - blue) / spread,
        torch.where(most == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    hue = 6 * turns + sixth
    # A channel is at its most for a third of the circle around its own hue and falls to its least on both sides.
    places = [(hue + start) % 6 for start in (5, 3, 1)]
    falls = [torch.minimum(place, 4 - place).clamp(0, 1) for place in places]
    return torch.stack([most - (most - least) * fall for fall in falls], -3)


def _flip_horizontally(draw: random.Random) -> Change:
    return lambda picture: picture.flip(-1)


def _flip_vertically(draw: random.Random) -> Change:
    return lambda picture: picture.flip(-2)


def _rotate(draw: random.Random) -> Change:
    degrees = draw.uniform(-180, 180)
    return lambda picture: rotated(picture, degrees)


def _other_colours(draw: random.Random) -> Change:
    """Brightness, contrast and saturation by 0 to 2 and hue by up to half the circle, in a random order."""
    brightness, contrast, saturation, hue = (draw.uniform(0, 2) for _ in range(4))
    steps: list[Change] = [
        lambda picture: blend(picture, torch.zeros_like(picture), brightness),
        lambda picture: blend(picture, luma(picture).mean((-2, -1), keepdim=True), contrast),
        lambda picture: blend(picture, luma(picture), saturation),
        lambda picture: turn_hue(picture, hue / 2 - 0.5),
    ]
    draw.shuffle(steps)

    def apply(picture: Tensor) -> Tensor:
        for step in steps:
            picture = step(picture)
        return picture

    return apply


def _blur(draw: random.Random) -> Change:
    sigma = draw.uniform(1.5, 2.0)
    return lambda picture: blurred(picture, sigma)


def _crop(draw: random.Random) -> Change:
    """A part of 8 to 100 % of the picture, of a side ratio from 3/4 to 4/3, enlarged to the picture's size."""
    share, down, across = draw.uniform(0.08, 1.0), draw.random(), draw.random()
    ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))

    def apply(picture: Tensor) -> Tensor:
        height, width = picture.shape[-2:]
        tall = min(height, max(1, round(math.sqrt(share * height * width / ratio))))
        wide = min(width, max(1, round(math.sqrt(share * height * width * ratio))))
        top, left = round(down * (height - tall)), round(across * (width - wide))
        part = picture[..., top : top + tall, left : left + wide].reshape(-1, 1, tall, wide)
        return interpolate(part, (height, width), mode="bilinear", align_corners=False).view_as(picture)

    return apply


CHANGES: dict[str, Callable[[random.Random], Change]] = {
    "horizontal flip": _flip_horizontally,
    "vertical flip": _flip_vertically,
    "rotation": _rotate,
    "colour": _other_colours,
    "blur": _blur,
    "crop": _crop,
}


def draw_change(names: tuple[str, ...], seed: int) -> tuple[str, Change]:
    """One of the named changes with its own random amounts, the same for the same seed.

    Returns:
        Its name, and a function from a picture to the changed one.
    """
    draw = random.Random(seed)
    name = draw.choice(names)
    return name, CHANGES[name](draw)


def read_names(text: str) -> tuple[str, ...]:
    """The changes of a text such as "rotation,blur"; "all" is every one.

    Raises:
        ValueError: a name that is none of them, or no name.
    """
    if text.strip() == "all":
        return tuple(CHANGES)
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in CHANGES]
    if unknown or not names:
        allowed = ", ".join(["all", *CHANGES])
        raise ValueError(f"ritual: changes {text!r} names {unknown[0] if unknown else 'nothing'!r}; allowed: {allowed}")
    return names
