"""The committed icon atlas as integer arrays, ready for drawing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_guard.eval.scenes.categories import INDEX, NAMES

ATLAS = Path(__file__).parent / "atlas.png"
INDEX_FILE = Path(__file__).parent / "atlas.json"

TRAIN_STYLES = ("noto", "fluent-emoji-flat", "drawn")
HELD_OUT_STYLES = ("twemoji", "emojione", "mdi")


class Icon:
    """One icon, premultiplied by its alpha, at full and half size.

    Attributes:
        style: Where it comes from, a key of ``sources`` in ``atlas.json``.
        levels: int32 arrays of shape (height, width, 4), red, green, blue times alpha / 255 and alpha, each with a
            transparent border of one pixel; the second is half as large.
    """

    def __init__(self, style: str, pixels: np.ndarray) -> None:
        self.style = style
        full = pixels.astype(np.int32)
        full[..., :3] = (full[..., :3] * full[..., 3:] + 127) // 255
        height, width = full.shape[:2]
        even = np.zeros((height + height % 2, width + width % 2, 4), np.int32)
        even[:height, :width] = full
        half = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) // 4
        self.levels = tuple(np.pad(level, ((1, 1), (1, 1), (0, 0))) for level in (full, half))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels at full size, without the border."""
        height, width = self.levels[0].shape[:2]
        return width - 2, height - 2


def _recoloured(icon: Icon) -> Icon:
    """The icon with red, green and blue exchanged in a circle: an unseen look for a category with one drawing."""
    twin = object.__new__(Icon)
    twin.style = f"{icon.style}, colours exchanged"
    twin.levels = tuple(level[..., [2, 0, 1, 3]] for level in icon.levels)
    return twin


@cache
def icons(held_out: bool) -> tuple[tuple[Icon, ...], ...]:
    """Icons of each of the 80 categories in training styles, or in the styles that training never shows."""
    sheet = np.asarray(Image.open(ATLAS).convert("RGBA"))
    shown: list[list[Icon]] = [[] for _ in NAMES]
    hidden: list[list[Icon]] = [[] for _ in NAMES]
    for entry in json.loads(INDEX_FILE.read_text(encoding="utf-8"))["icons"]:
        left, top, width, height = entry["box"]
        icon = Icon(entry["style"], sheet[top : top + height, left : left + width])
        bank = shown if entry["style"] in TRAIN_STYLES else hidden
        bank[INDEX[entry["category"]]].append(icon)
    if not held_out:
        return tuple(tuple(bank) for bank in shown)
    return tuple(tuple(unseen or [_recoloured(icon) for icon in known]) for known, unseen in zip(shown, hidden))
