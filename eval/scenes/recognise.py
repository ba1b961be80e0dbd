"""Is a picture one of the scenes, the only pictures the built-in model has ever seen?

Two things tell, both measured on 1,200 scenes (300 of each split, seed 7) and 100 photographs of MSCOCO:

- Size. Every scene has 96 x 96 pixels, and none of the photographs does.
- Noise. Every scene is drawn with noise, so that few neighbouring pixels are alike: 26 % in the smoothest scene. Of the
  photographs scaled to 96 x 96 pixels 39 are clearly smoother, and so is anything painted in flat colours.

What remains undetected is a small picture of 96 x 96 pixels with as much detail as a scene: 61 of those 100 scaled
photographs. Statistics of colours do not tell these from scenes, either.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_guard.builtin_model import SMOL, is_shipped
from vlm_guard.eval.scenes.render import SIZE
from vlm_guard.untrusted.picture_reader import UnreadablePicture, read_picture, refuse_picture

MOST_ALIKE = 0.3
"""A scene has no larger share of neighbouring pixels that are alike."""

_ALIKE = 2
"""Largest difference of a colour channel, out of 255, between pixels that count as alike."""

SCORES_SAY_NOTHING = (
    "These scores and marks were fitted on drawn scenes, of which this picture is none: they say nothing about it."
)
"""For scores of what a model that comes with the package says of a picture that is no scene."""


def may_be_scene(picture: Image.Image) -> bool:
    """Whether a picture can be a scene; see above for how often a photograph passes."""
    return picture.size == (SIZE, SIZE) and alike_share(picture) <= MOST_ALIKE


def alike_share(picture: Image.Image) -> float:
    """The share of neighbouring pixels, side by side and one above the other, that are alike."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    steps = (np.abs(np.diff(pixels, axis=axis)).max(-1) <= _ALIKE for axis in (0, 1))
    return float(np.mean([alike.mean() for alike in steps]))


def note_about(model: str, picture: Image.Image) -> str:
    """One sentence where a model that comes with the package is shown no scene; empty in all other cases.

    Args:
        model: the name the model was loaded by.
        picture: in any mode and size.
    """
    if not is_shipped(model) or may_be_scene(picture):
        return ""
    return f"{_knows(model)}: this picture is none of its scenes, so what it says of it means nothing."


def note_about_files(model: str, paths: Iterable[Path]) -> str:
    """The same sentence once for many pictures; files that are no pictures are left out.

    Args:
        model: the name the model was loaded by.
        paths: the pictures. Of those of another size than a scene's only the header is read.
    """
    if not is_shipped(model):
        return ""
    scenes = [_file_may_be_scene(path) for path in paths]
    readable, others = sum(found is not None for found in scenes), scenes.count(False)
    if not others:
        return ""
    which = f"{others} of {readable} pictures are none of its scenes, so what it says of them means nothing"
    if readable == others:
        which = "none of these pictures is one of its scenes, so what it says of them means nothing"
    return f"{_knows(model)}: {which}."


def _knows(model: str) -> str:
    name = SMOL if model.partition(":")[0] == SMOL else "The built-in model"
    return f"{name} knows 80 drawn things only and has never seen a photograph"


def _file_may_be_scene(path: Path) -> bool | None:
    """None where the file is no picture."""
    other_size = False

    def check(size: tuple[int, int]) -> None:
        nonlocal other_size
        if size != (SIZE, SIZE):
            other_size = True
            raise refuse_picture("it is no scene")

    try:
        return may_be_scene(read_picture(path, check_size=check))
    except (UnreadablePicture, FileNotFoundError):
        return False if other_size else None
