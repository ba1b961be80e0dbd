"""The pictures of a training run, drawn once into memory-mapped arrays, and what the vision tower makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vlm_guard.eval.scenes.dataset import TRAINING_SEED
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import GRID, MOST_OBJECTS, SIZE, render
from vlm_guard.eval.training.model import PATCHES, WIDTH, normalise
from vlm_guard.eval.training.scene_store import CROWDED_SHARE, SceneStore, open_store
from vlm_guard.eval.training.smol.recipe import Recipe
from vlm_guard.eval.training.smol.views import draw_view, mirrored, near_view

FIRST_SCENE = {"speak": 100_000, "see": 200_000}
"""Number of the first training scene of each stage. The tower must not have seen what the language model learns from:
on pictures that it knows it sees better than it will on others. The built-in model learned from those below 100,000."""

_VIEW_WORD = 3_000
_BLOCK = 250
_AT_ONCE = 100


def _draw_block(stage: str, recipe: Recipe, first: int, last: int) -> list[np.ndarray]:
    count = last - first
    pixels = np.empty((count, SIZE, SIZE, 3), np.uint8)
    patches = np.empty((count, GRID, GRID), np.uint8)
    types = np.empty(count, np.uint8)
    objects = np.full((count, MOST_OBJECTS, 6), -1, np.int16)
    has_second = np.zeros(count, np.uint8)
    second = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    for row in range(count):
        number = FIRST_SCENE[stage] + first + row
        draws = Draws(TRAINING_SEED, _VIEW_WORD, recipe.seed, number)
        split = "crowded" if number % CROWDED_SHARE == CROWDED_SHARE - 1 else "common"
        scene = render(split, TRAINING_SEED, number)
        scene = mirrored(scene) if draws.chance(50) else scene
        view, whole = draw_view(scene, draws, recipe.near, recipe.far)
        pixels[row], patches[row], types[row] = view.pixels, view.patches, view.scene_type
        for place, item in enumerate(view.objects):
            objects[row, place] = (item.category, *item.box, item.area)
        if stage == "speak" and whole and draws.chance(recipe.second_view):
            has_second[row], second[row] = 1, near_view(scene, draws).pixels
    return [pixels, patches, types, objects, has_second, second]


def _each(draw: Callable[..., list[np.ndarray]], starts: list[int], ends: list[int], workers: int) -> Iterator[list]:
    """The blocks in their order, drawn by so many processes; one needs none beside this."""
    if workers == 1:
        yield from map(draw, starts, ends)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, starts, ends)


def draw_pictures(folder: Path, stage: str, recipe: Recipe) -> SceneStore:
    """Draw the pictures of a stage into `folder`, or open them if they are there already.

    Beside the arrays of a `SceneStore` the folder of the stage "speak" holds `has_second` uint8 (N,) and `second` uint8
    (N, 96, 96, 3): the enlarged part that is shown behind some pictures.
    """
    count = recipe.see_pictures if stage == "see" else recipe.speak_pictures
    marker = folder / "store.json"
    wanted = {"stage": stage, "count": count, "near": recipe.near, "far": recipe.far, "seed": recipe.seed}
    wanted |= {"second_view": recipe.second_view}
    if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        shapes = {
            "pixels": ((count, SIZE, SIZE, 3), np.uint8),
            "patches": ((count, GRID, GRID), np.uint8),
            "scene_types": ((count,), np.uint8),
            "objects": ((count, MOST_OBJECTS, 6), np.int16),
        }
        if stage == "speak":
            shapes |= {"has_second": ((count,), np.uint8), "second": ((count, SIZE, SIZE, 3), np.uint8)}
        arrays = [
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            for name, (shape, dtype) in shapes.items()
        ]
        starts = list(range(0, count, _BLOCK))
        ends = [min(count, start + _BLOCK) for start in starts]
        draw = partial(_draw_block, stage, recipe)
        for start, end, block in zip(starts, ends, _each(draw, starts, ends, min(recipe.workers, len(starts)))):
            for array, part in zip(arrays, block):
                array[start:end] = part
        for array in arrays:
            array.flush()
        marker.write_text(json.dumps(wanted), encoding="utf-8")
    return open_store(folder)


@torch.no_grad()
def compute_features(folder: Path, tower: nn.Module) -> np.ndarray:
    """What the tower makes of the pictures of the stage "speak", computed once: float16 (N, 2, 64, 192), memory-mapped.

    The second of the two is the enlarged part, zero where there is none.
    """
    path = folder / "features.npy"
    if not path.is_file():
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        second, has_second = np.load(folder / "second.npy", mmap_mode="r"), np.load(folder / "has_second.npy")
        partial_path = folder / "features.partial.npy"
        shape = (len(pixels), 2, PATCHES, WIDTH)
        out = np.lib.format.open_memmap(partial_path, mode="w+", dtype=np.float16, shape=shape)

        def see(some: np.ndarray) -> np.ndarray:
            given = normalise(torch.from_numpy(np.array(some)))
            seen: torch.Tensor = tower(pixel_values=given).last_hidden_state[:, 1:]
            return seen.half().numpy()

        for start in range(0, len(pixels), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            out[part, 0] = see(pixels[part])
            flagged = start + np.flatnonzero(has_second[part])
            if len(flagged):
                out[flagged, 1] = see(second[flagged])
        out.flush()
        partial_path.replace(path)
    return np.load(path, mmap_mode="r")
