"""Draw a scene: 96 x 96 pixels, integer arithmetic only, so that a seed gives the same picture on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.icons import Icon, icons
from vlm_guard.eval.scenes.world import SCENE_TYPES, SPLITS, SceneType, SplitLaw, draw_categories

SIZE = 96
"""Side of a scene in pixels."""

GRID = 8
"""Scenes are divided into 8 x 8 patches of 12 pixels for the vision tower and the patch labels."""

ONE = 1 << 16
"""Fixed-point unit of positions and rotations."""

MOST_OBJECTS = 12

# Rounded once to integers: a last-bit difference between mathematics libraries cannot survive.
_ROTATIONS = {
    angle: (round(math.cos(math.radians(angle)) * ONE), round(math.sin(math.radians(angle)) * ONE))
    for angle in range(-24, 25)
}
_SPLIT_CODES = {name: code for code, name in enumerate(SPLITS)}


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A visible object: category index, box ``(x, y, width, height)`` and visible area in pixels."""

    category: int
    box: tuple[int, int, int, int]
    area: int

    @property
    def center(self) -> int:
        """Horizontal middle of the box in half pixels, 0 to 192."""
        return 2 * self.box[0] + self.box[2]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A rendered scene.

    Attributes:
        pixels: uint8 array of shape (96, 96, 3), RGB.
        scene_type: Index into ``SCENE_TYPES``.
        objects: What is visible; objects hidden for the most part are not listed and must not be claimed.
        patches: uint8 array of shape (8, 8): 0 for background, otherwise the category index plus one.
        owner: int64 array of shape (96, 96): 0 for background, otherwise the number of the drawing that shows there,
            the first of `drawn` being 1.
        drawn: Category index of every drawing, those hidden for the most part among them.
    """

    pixels: np.ndarray
    scene_type: int
    objects: tuple[SceneObject, ...]
    patches: np.ndarray
    owner: np.ndarray
    drawn: tuple[int, ...]

    @property
    def present(self) -> set[int]:
        """Indices of the visible categories."""
        return {item.category for item in self.objects}


def draw_icon(icon: Icon, width: int, height: int, angle: int, mirrored: bool) -> np.ndarray:
    """The icon scaled to ``width`` x ``height`` pixels and turned by ``angle`` degrees, premultiplied int32 (h, w, 4).

    Bilinear sampling in 16-bit fixed point; small drawings sample the half-size level, which avoids aliasing.
    """
    level = icon.levels[1 if max(width, height) <= 28 else 0]
    source_height, source_width = level.shape[0] - 2, level.shape[1] - 2
    cos, sin = _ROTATIONS[angle]
    out_width = (width * cos + height * abs(sin)) // ONE + 1
    out_height = (height * cos + width * abs(sin)) // ONE + 1
    # Twice the offset from the middle, so that half pixels stay integers.
    across = 2 * np.arange(out_width, dtype=np.int64)[None, :] - (out_width - 1)
    down = 2 * np.arange(out_height, dtype=np.int64)[:, None] - (out_height - 1)
    x = (cos * across + sin * down) * source_width // (2 * width)
    y = (-sin * across + cos * down) * source_height // (2 * height)
    if mirrored:
        x = -x
    # The border of one transparent pixel shifts the middle by one.
    x = np.clip(x + (source_width + 1) * ONE // 2, 0, (source_width + 1) * ONE - 1)
    y = np.clip(y + (source_height + 1) * ONE // 2, 0, (source_height + 1) * ONE - 1)
    left, top = x >> 16, y >> 16
    fx, fy = ((x & 0xFFFF) >> 8)[..., None], ((y & 0xFFFF) >> 8)[..., None]
    upper = level[top, left] * (256 - fx) + level[top, left + 1] * fx
    lower = level[top + 1, left] * (256 - fx) + level[top + 1, left + 1] * fx
    return ((upper * (256 - fy) + lower * fy) >> 16).astype(np.int32)


def _background(draws: Draws, scene: SceneType) -> np.ndarray:
    """Two tones with a soft gradient and translucent rectangles that mean nothing; int32 (96, 96, 3)."""
    horizon = SIZE * min(85, max(15, scene.horizon + draws.triangular(10))) // 100
    picture = np.empty((SIZE, SIZE, 3), np.int32)
    for rows, colour in ((slice(0, horizon), scene.upper), (slice(horizon, SIZE), scene.lower)):
        picture[rows] = [channel + draws.triangular(24) for channel in colour]
    slope = np.arange(SIZE, dtype=np.int32)[:, None, None] * 24 // SIZE - 12
    picture += slope if draws.chance(50) else -slope
    for _ in range(draws.between(1, 5)):
        x, y = draws.below(SIZE - 8), draws.below(SIZE - 8)
        rows, columns = slice(y, y + draws.between(3, 22)), slice(x, x + draws.between(3, 22))
        tint = np.array([draws.below(256) for _ in range(3)], np.int32)
        picture[rows, columns] = (3 * picture[rows, columns] + tint) // 4
    return picture


def _overlap(box: tuple[int, int, int, int], others: list[tuple[int, int, int, int]]) -> int:
    """Covered area in percent of the smaller of two boxes, summed over ``others``."""
    x, y, width, height = box
    total = 0
    for ox, oy, other_width, other_height in others:
        across = min(x + width, ox + other_width) - max(x, ox)
        down = min(y + height, oy + other_height) - max(y, oy)
        if across > 0 and down > 0:
            total += 100 * across * down // min(width * height, other_width * other_height)
    return total


def _place(draws: Draws, width: int, height: int, others: list[tuple[int, int, int, int]]) -> tuple[int, int]:
    """A place with little overlap: the first of ten draws below 15 %, or the best of them."""
    best = (10**9, 0, 0)
    for _ in range(10):
        x = draws.between(-2, max(-1, SIZE - width + 2))
        y = draws.between(-2, max(-1, SIZE - height + 2))
        best = min(best, (_overlap((x, y, width, height), others), x, y))
        if best[0] < 15:
            break
    return best[1], best[2]


def _longer_side(draws: Draws, crowd: int) -> int:
    """The longer side of a drawing in pixels: one in six is small, and the more there are, the smaller they all are."""
    largest = 46 if crowd <= 4 else 40 if crowd <= 6 else 30
    return draws.between(13, 19) if draws.chance(16) else draws.between(20, largest)


def _draw_object(draws: Draws, icon: Icon, longest: int) -> np.ndarray:
    """One icon in a size near `longest`, in a random turn, tint and strength; int32 (h, w, 4), premultiplied."""
    width = max(6, icon.size[0] * longest * draws.between(90, 112) // 4800)
    height = max(6, icon.size[1] * longest * draws.between(90, 112) // 4800)
    angle = draws.triangular(24) if draws.chance(60) else 0
    drawn = draw_icon(icon, width, height, angle, draws.chance(50))
    strength = draws.between(96, 180) if draws.chance(14) else draws.between(225, 256)
    tint = np.array([draws.between(205, 300) for _ in range(3)], np.int32)
    drawn[..., :3] = np.minimum(drawn[..., :3] * tint // 256, drawn[..., 3:])
    if icon.style == "mdi":
        # One-colour glyphs are white in the atlas and take the tint of a random dark or bright colour.
        drawn[..., :3] = drawn[..., :3] * [draws.between(10, 230) for _ in range(3)] // 255
    return drawn * strength // 256


def _finish(draws: Draws, picture: np.ndarray) -> np.ndarray:
    """Blur, contrast and noise, as a camera would add them."""
    if draws.chance(30):
        for axis in (0, 1):
            before, after = np.roll(picture, 1, axis), np.roll(picture, -1, axis)
            picture = (before + 2 * picture + after + 2) // 4
    if draws.chance(40):
        picture = (picture - 128) * draws.between(150, 256) // 256 + 128 + draws.between(-18, 18)
    sigma = draws.choice((3, 5, 8, 14, 22))
    return np.clip(picture + draws.noise(picture.shape, sigma), 0, 255).astype(np.uint8)


def patch_labels(owner: np.ndarray, categories: Sequence[int]) -> np.ndarray:
    """The category, plus one, that covers most of each patch, if any covers an eighth of it; uint8 (8, 8).

    Args:
        owner: as in :class:`Scene`.
        categories: of every drawing.
    """
    table = np.array([0] + [category + 1 for category in categories])
    side = SIZE // GRID
    tiles = table[owner].reshape(GRID, side, GRID, side).transpose(0, 2, 1, 3).reshape(GRID * GRID, side * side)
    labels = np.zeros(GRID * GRID, np.uint8)
    for place, tile in enumerate(tiles):
        counts = np.bincount(tile, minlength=1)
        counts[0] = 0
        if counts.max() * 8 >= side * side:
            labels[place] = counts.argmax()
    return labels.reshape(GRID, GRID)


def visible_objects(owner: np.ndarray, categories: Sequence[int], full_areas: Sequence[int]) -> tuple[SceneObject, ...]:
    """The objects that can be asked about.

    Args:
        owner: as in :class:`Scene`.
        categories: of every drawing.
        full_areas: the pixels that every drawing would have with nothing in front of it.
    """
    objects = []
    for number, (category, full) in enumerate(zip(categories, full_areas), start=1):
        ys, xs = np.nonzero(owner == number)
        # What is covered for the most part is no ground truth: naming it would be a guess.
        if len(ys) >= 25 and 100 * len(ys) >= 45 * full:
            left, top = int(xs.min()), int(ys.min())
            box = (left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1)
            objects.append(SceneObject(category=category, box=box, area=len(ys)))
    return tuple(objects)


def render(split: str, *seed: int) -> Scene:
    """Draw scene number ``seed`` (one or more integers) of a split.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
    return render_law(SPLITS[split], Draws(_SPLIT_CODES[split], *seed))


def render_law(law: SplitLaw, draws: Draws) -> Scene:
    """Draw one scene of a law with the given stream of draws."""
    scene, chosen = draw_categories(draws, law)
    picture = _background(draws, scene)
    copies = [c for c in chosen for _ in range(draws.choice((2, 2, 3)) if draws.chance(10) else 1)]
    categories = draws.shuffled(copies)[:MOST_OBJECTS]
    bank = icons(law.held_out_styles)
    owner = np.zeros((SIZE, SIZE), np.int64)
    boxes: list[tuple[int, int, int, int]] = []
    full_areas: list[int] = []
    for number, category in enumerate(categories, start=1):
        icon = draws.choice(bank[category])
        longest = _longer_side(draws, len(categories)) if law.longest is None else draws.between(*law.longest)
        drawn = _draw_object(draws, icon, longest)
        height, width = drawn.shape[:2]
        x, y = _place(draws, width, height, boxes)
        boxes.append((x, y, width, height))
        rows, columns = slice(max(y, 0), min(y + height, SIZE)), slice(max(x, 0), min(x + width, SIZE))
        part = drawn[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        picture[rows, columns] = part[..., :3] + picture[rows, columns] * (255 - part[..., 3:]) // 255
        owner[rows, columns][part[..., 3] > 34] = number
        full_areas.append(int((drawn[..., 3] > 34).sum()))
    objects = visible_objects(owner, categories, full_areas)
    labels = patch_labels(owner, categories)
    return Scene(
        pixels=_finish(draws, picture),
        scene_type=SCENE_TYPES.index(scene),
        objects=objects,
        patches=labels,
        owner=owner,
        drawn=tuple(categories),
    )
