"""Grid2Matrix as a task: `--data grids:ROWSxCOLUMNS` draws the pictures, which are kept in the user's cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vlm_guard.eval.scenes.dataset import cache_folder
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.grid2matrix.grids import (
    PALETTE,
    GridScore,
    answer_length,
    correct_cells,
    draw_grid,
    grid_prompt,
    make_grid,
    parse_grid,
)
from vlm_guard.eval.tasks.shared.drawing import Drawn, entitle, make_figure, plain
from vlm_guard.eval.tasks.shared.metric import Better, Column, Metric, share
from vlm_guard.eval.tasks.shared.own_data import question_data
from vlm_guard.eval.tasks.shared.received import Count, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlm_guard.eval.data.datasets import EvaluationData


class GridSettings(TaskSettings):
    """Which grids are drawn."""

    max_new_tokens: int = setting(0, "Token limit of an answer; 0: as many as published runs allow for the size.", ge=0)
    colours: int = setting(3, "Number of colours.", ge=1, le=len(PALETTE))
    layout: Literal["random", "stripes", "vertical_stripes", "checkerboard"] = setting(
        "random", "How cells are coloured: random, stripes, vertical_stripes, checkerboard."
    )
    pixels: int = setting(512, "Side of a picture in pixels.", ge=32, le=4096)
    first_seed: int = setting(0, "Seed of the first random grid; the next ones follow.", ge=0)


class GridScoreReceived(Received):
    """The score of an answered grid."""

    right: Annotated[list[Annotated[str, Field(pattern="^[01]+$")]], Field(min_length=1)]
    parsed: bool
    same_shape: bool


class GridDescribed(Received):
    """Which grids were drawn."""

    layout: str
    colours: Count


@register_task("grid2matrix")
class GridTask(Task):
    """Grids of coloured cells to be written down as numbers, all of one shape in a run."""

    help = "Writing down a grid of coloured cells: what is lost between the picture and the text."
    source = "Grid2Matrix, arXiv 2604.09687"
    table_title = "grids"
    own_data = "grids"
    data_kinds = ("grids",)
    data_help = "grids:ROWSxCOLUMNS, such as grids:4x6; the pictures are drawn, --count says how many"
    Settings = GridSettings
    Score = GridScoreReceived
    Described = GridDescribed
    columns = (
        Column(metric="grid2matrix.cell_accuracy", label="cells ↑"),
        Column(metric="grid2matrix.exact_match", label="whole grids ↑"),
        Column(metric="grid2matrix.parse_error_rate", label="no grid ↓"),
        Column(metric="grid2matrix.shape_mismatch_rate", label="other shape ↓"),
    )

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """The grids, drawn on first use. Without a count: 100 random grids, or the one grid of another layout."""
        shape = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", place)
        if shape is None:
            raise ValueError(f"--data grids:{place}: give rows and columns, 1 to 999 each, such as grids:4x6")
        height, width = int(shape[1]), int(shape[2])
        chosen: Any = settings
        random = chosen.layout == "random"
        if not random and count not in (None, 1):
            raise ValueError(f"there is only one grid of the layout {chosen.layout}; give --count 1, or none")
        seeds = range(chosen.first_seed, chosen.first_seed + (count or (100 if random else 1)))
        grids = {
            number: make_grid(height, width, chosen.colours, chosen.layout, seed)
            for number, seed in enumerate(seeds, start=1)
        }
        name = f"{height}x{width}-{chosen.colours}-{chosen.layout}-{chosen.pixels}px-v{_PICTURES_VERSION}"
        folder = cache_folder() / "grids" / name
        images = {
            number: _drawn(folder / f"{seed:06d}.png", grids[number], chosen.pixels)
            for number, seed in enumerate(seeds, start=1)
        }
        return question_data("grids", folder, images, grids, name=f"grids:{place}")

    @property
    def _shape(self) -> tuple[int, int]:
        height, width = next(iter(self.data.content.values())).shape
        return height, width

    @property
    def max_new_tokens(self) -> int:
        """As set, or as many as published runs allow for a grid of this shape."""
        return self.settings.max_new_tokens or answer_length(*self._shape)

    def samples(self) -> list[Sample]:
        """One per grid."""
        prompt = grid_prompt(*self._shape, self.settings.colours)
        return [
            Sample(key=f"grid2matrix/{number}", task=self.name, image_id=number, prompt=prompt)
            for number in self.data.images
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """Which cells are right, row by row as text of 0 and 1, and whether there is a grid of the right shape."""
        grid = self.data.content[sample.image_id]
        answer = parse_grid(text, *grid.shape)
        right = correct_cells(grid, answer)
        return {
            "right": ["".join("1" if cell else "0" for cell in row) for row in right],
            "parsed": answer is not None,
            "same_shape": answer is not None and answer.shape == grid.shape,
        }

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One grid and its cells."""
        return asdict(_grid_score([record]))

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The same for all records."""
        return _METRICS

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """Grids, cells and what is wrong with answers."""
        return _grid_score(records).to_dict()

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """Layout and colours."""
        return f"Grid2Matrix, {described['layout']} grids in {described['colours']} colours"

    @classmethod
    def plots(cls) -> dict[str, Callable[[Drawn], Figure]]:
        """Where in the picture cells are right."""
        return {"grid-map": plot_map}

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """How many cells are right."""
        score = _grid_score([record])
        answer = f"{score.correct_cells} of {score.cells} cells"
        label = f"{score.cells} of {score.cells} cells"
        return {"question": record["prompt"], "label": label, "groups": [], "answer": answer}


# Part of the name of the folder with drawn grids: another way of drawing needs another folder.
_PICTURES_VERSION = 1


def _drawn(path: Path, grid: np.ndarray, size: int) -> Path:
    """The picture file of a grid, drawn where it is not there yet."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
        draw_grid(grid, size).save(partial, "PNG")
        partial.replace(path)
    return path


def _grid_score(records: Iterable[Record]) -> GridScore:
    scores = [record["score"] for record in records]
    cells = ["".join(score["right"]) for score in scores]
    return GridScore(
        grids=len(scores),
        exact=sum("0" not in right for right in cells),
        cells=sum(map(len, cells)),
        correct_cells=sum(right.count("1") for right in cells),
        parse_errors=sum(not score["parsed"] for score in scores),
        shape_mismatches=sum(score["parsed"] and not score["same_shape"] for score in scores),
    )


def _metric(name: str, better: Better, part: str, whole: str) -> Metric:
    label = name.replace("_", " ")
    return Metric(name=f"grid2matrix.{name}", label=label, kind="share", better=better, compute=share(part, whole))


_METRICS = (
    _metric("cell_accuracy", "higher", "correct_cells", "cells"),
    _metric("exact_match", "higher", "exact", "grids"),
    _metric("parse_error_rate", "lower", "parse_errors", "grids"),
    _metric("shape_mismatch_rate", "lower", "shape_mismatches", "grids"),
)


def plot_map(drawn: Drawn) -> Figure:
    """The share of right cells at every place of the grid, one panel per method.

    Raises:
        ValueError: no method has answers about grids.
    """
    maps = {}
    for method in drawn.results.methods:
        rows = [
            record["score"]["right"]
            for record in drawn.records[method.label]
            if record["task"] == "grid2matrix" and "error" not in record
        ]
        if rows:
            maps[method.label] = np.mean([[[cell == "1" for cell in row] for row in grid] for grid in rows], axis=0)
    if not maps:
        raise ValueError("these runs have no answers about grids (task grid2matrix) to plot")
    figure, panels = make_figure(len(maps))
    for axes, (label, shares) in zip(panels, maps.items()):
        shown = axes.imshow(100 * shares, vmin=0, vmax=100, cmap="viridis")
        axes.set_title(plain(label), fontsize=9)
    figure.colorbar(shown, ax=list(panels), label="right in %")
    entitle(figure, drawn.results, "share of grids with this cell right")
    return figure
