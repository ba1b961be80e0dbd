"""Heat-maps on a picture, as PNG data for the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from vlm_guard.demo.uploads import shrink

SHOWN_PIXELS = 480
"""Longer side of a picture with an overlay; smaller pictures are enlarged to about this."""

SEQUENTIAL = "inferno"
DIVERGING = "PuOr"
_DIM, _STRONG = 0.25, 0.8


@dataclass(frozen=True, kw_only=True)
class ColourScale:
    """The values that the ends of a colour map stand for.

    Attributes:
        low: 0, or minus `high` for differences. high: above 0.
        diverging: whether two colours meet at zero.
    """

    low: float
    high: float
    diverging: bool = False

    @classmethod
    def of(cls, maps: Sequence[np.ndarray], diverging: bool = False) -> "ColourScale":
        """The scale that spans all values of `maps`."""
        high = max((float(np.abs(values).max()) for values in maps if values.size), default=0.0) or 1e-6
        return cls(low=-high if diverging else 0.0, high=high, diverging=diverging)

    def colours(self, values: np.ndarray) -> np.ndarray:
        """uint8 RGB for each value."""
        part = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        name = DIVERGING if self.diverging else SEQUENTIAL
        return (matplotlib.colormaps[name](part)[..., :3] * 255).astype(np.uint8)

    def strength(self, values: np.ndarray) -> np.ndarray:
        """How opaque each value is drawn, 0 to 1: what is near zero leaves the picture visible."""
        return _DIM + (_STRONG - _DIM) * np.clip(np.abs(values) / self.high, 0, 1)


def as_grid(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[rows, columns] of a map over visual tokens in reading order.

    Raises:
        ValueError: the picture does not have that many visual tokens.
    """
    rows, columns = grid
    if values.size != rows * columns:
        raise ValueError(f"{values.size} visual tokens do not fill a grid of {rows} x {columns}")
    return values.reshape(rows, columns)


def enlarge(image: Image.Image, longest: int = SHOWN_PIXELS) -> Image.Image:
    """The picture at page size: small ones by a whole factor with sharp pixels, large ones scaled down."""
    factor = longest // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return shrink(image, longest)


def overlay(image: Image.Image, cells: np.ndarray, scale: ColourScale) -> Image.Image:
    """The picture in grey with a map [rows, columns] over it, every patch as the model has it."""
    base = enlarge(image).convert("L").convert("RGB")
    under = np.asarray(base, np.float32)
    size = base.size
    colours = Image.fromarray(scale.colours(cells)).resize(size, Image.Resampling.NEAREST)
    opacity = Image.fromarray((scale.strength(cells) * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    share = np.asarray(opacity, np.float32)[..., None] / 255
    mixed = under * (1 - share) + np.asarray(colours, np.float32) * share
    return Image.fromarray(mixed.astype(np.uint8))


def outline_cells(image: Image.Image, chosen: np.ndarray, colour: str = "#d55e00") -> Image.Image:
    """The picture with a frame and a cross in every patch where `chosen` [rows, columns] is True."""
    shown = enlarge(image)
    drawn = shown.copy()
    pen = ImageDraw.Draw(drawn)
    rows, columns = chosen.shape
    width = max(2, shown.width // 160)
    for row, column in zip(*np.nonzero(chosen)):
        left, right = column * shown.width // columns, (column + 1) * shown.width // columns - 1
        top, bottom = row * shown.height // rows, (row + 1) * shown.height // rows - 1
        pen.rectangle((left, top, right, bottom), outline=colour, width=width)
        pen.line((left, top, right, bottom), fill=colour, width=width)
    return drawn


def data_uri(image: Image.Image) -> str:
    """A picture as an address that HTML can show: PNG, or JPEG for photographs, which are far larger as PNG."""
    buffer = io.BytesIO()
    kind = "png" if image.width * image.height <= SHOWN_PIXELS**2 else "jpeg"
    image.save(buffer, "PNG" if kind == "png" else "JPEG", **({} if kind == "png" else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def gradient_css(diverging: bool) -> str:
    """The colour map as a CSS gradient, for the legend."""
    colours = ColourScale(low=-1.0 if diverging else 0.0, high=1.0, diverging=diverging).colours(
        np.linspace(-1.0 if diverging else 0.0, 1.0, 9)
    )
    return "linear-gradient(to right, " + ", ".join(f"rgb({r},{g},{b})" for r, g, b in colours.tolist()) + ")"
