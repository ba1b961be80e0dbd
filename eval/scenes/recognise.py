"""Is a picture one of the scenes, the only pictures the built-in model has ever seen?

Two things tell, both measured on 1,200 scenes (300 of each split, seed 7) and 100 photographs of MSCOCO:

- Size. Every scene has 96 x 96 pixels, and none of the photographs does.
- Noise. Every scene is drawn with noise, so that few neighbouring pixels are alike: 26 % in the smoothest scene. Of the
  photographs scaled to 96 x 96 pixels 39 are clearly smoother, and so is anything painted in flat colours.

What remains undetected is a small picture of 96 x 96 pixels with as much detail as a scene: 61 of those 100 scaled
photographs. Statistics of colours do not tell these from scenes, either.
"""

import numpy as np
from PIL import Image

from vlm_guard.builtin_model import is_shipped
from vlm_guard.eval.scenes.render import SIZE

MOST_ALIKE = 0.3
"""A scene has no larger share of neighbouring pixels that are alike."""

_ALIKE = 2
"""Largest difference of a colour channel, out of 255, between pixels that count as alike."""

NO_SCENE = (
    "The built-in model knows 80 drawn things only and has never seen a photograph: this picture is none of its "
    "scenes, so what it says of it means nothing."
)


def may_be_scene(picture: Image.Image) -> bool:
    """Whether a picture can be a scene; see above for how often a photograph passes."""
    return picture.size == (SIZE, SIZE) and alike_share(picture) <= MOST_ALIKE


def alike_share(picture: Image.Image) -> float:
    """The share of neighbouring pixels, side by side and one above the other, that are alike."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    steps = (np.abs(np.diff(pixels, axis=axis)).max(-1) <= _ALIKE for axis in (0, 1))
    return float(np.mean([alike.mean() for alike in steps]))


def note_about(model: str, picture: Image.Image) -> str:
    """One sentence where the built-in model is shown something else than a scene; empty in all other cases.

    Args:
        model: the name the model was loaded by.
        picture: in any mode and size.
    """
    return NO_SCENE if is_shipped(model) and not may_be_scene(picture) else ""
