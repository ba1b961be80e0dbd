"""Training pictures at several scales: a whole scene, a part of one enlarged, or one made smaller in a plain picture.

A method that magnifies a part of the picture shows the model a scale it must know; and what is small at full view must
be harder to see than when it is magnified.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import SIZE, Scene, patch_labels, visible_objects

NEAR_SIDES = (36, 76)
"""Smallest and largest side in pixels of a part that is enlarged to the whole picture."""

FAR_SIDES = (44, 76)
"""Smallest and largest side in pixels that a scene made smaller may have."""


def near_view(scene: Scene, draws: Draws) -> Scene:
    """A square part of a scene around one of its objects, enlarged to the whole picture."""
    side = draws.between(*NEAR_SIDES)
    if scene.objects:
        x, y, width, height = draws.choice(scene.objects).box
        middle = (x + width // 2 + draws.triangular(side // 4), y + height // 2 + draws.triangular(side // 4))
    else:
        middle = (draws.below(SIZE), draws.below(SIZE))
    left, top = (min(max(0, at - side // 2), SIZE - side) for at in middle)
    rows, columns = slice(top, top + side), slice(left, left + side)
    pixels = _resized(scene.pixels[rows, columns], SIZE)
    owner = _resized_owner(scene.owner[rows, columns], SIZE)
    return _seen(scene, pixels, owner, (SIZE / side) ** 2)


def far_view(scene: Scene, draws: Draws) -> Scene:
    """A scene made smaller, somewhere in a picture of its mean colour with noise."""
    side = draws.between(*FAR_SIDES)
    left, top = draws.below(SIZE - side + 1), draws.below(SIZE - side + 1)
    rows, columns = slice(top, top + side), slice(left, left + side)
    colour = scene.pixels.reshape(-1, 3).mean(0).astype(np.int32)
    pixels = np.clip(colour + draws.noise((SIZE, SIZE, 3), 6), 0, 255).astype(np.uint8)
    pixels[rows, columns] = _resized(scene.pixels, side)
    owner = np.zeros_like(scene.owner)
    owner[rows, columns] = _resized_owner(scene.owner, side)
    return _seen(scene, pixels, owner, (side / SIZE) ** 2)


def draw_view(scene: Scene, draws: Draws, near: int, far: int) -> tuple[Scene, bool]:
    """One of the three views, `near` and `far` in 100 draws; and whether it is the whole scene at its own scale."""
    roll = draws.below(100)
    if roll < near:
        return near_view(scene, draws), False
    return (far_view(scene, draws), False) if roll < near + far else (scene, True)


def mirrored(scene: Scene) -> Scene:
    """Left and right exchanged."""
    return _seen(scene, np.ascontiguousarray(scene.pixels[:, ::-1]), np.ascontiguousarray(scene.owner[:, ::-1]), 1.0)


def _seen(scene: Scene, pixels: np.ndarray, owner: np.ndarray, magnified: float) -> Scene:
    """The scene as it is in other pixels: what shows enough of itself is there, the rest is not."""
    # How much of a drawing its neighbours hide was decided when the scene was drawn; here only the frame hides.
    listed = {(item.category, item.box) for item in scene.objects}
    areas = []
    for number, category in enumerate(scene.drawn, start=1):
        ys, xs = np.nonzero(scene.owner == number)
        box = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1) if len(ys) else (0, 0, 0, 0)
        areas.append(round(magnified * len(ys)) if (category, box) in listed else SIZE**4)
    objects = visible_objects(owner, scene.drawn, areas)
    return replace(scene, pixels=pixels, owner=owner, objects=objects, patches=patch_labels(owner, scene.drawn))


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (side, side, 3) by bicubic sampling, as the processor does it."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BICUBIC))


def _resized_owner(owner: np.ndarray, side: int) -> np.ndarray:
    """The owner (side, side) by the nearest pixel."""
    places = (np.arange(side) * owner.shape[0] + owner.shape[0] // 2) // side
    return np.ascontiguousarray(owner[np.ix_(places, places)])
