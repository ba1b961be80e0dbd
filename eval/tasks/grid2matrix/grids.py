"""Grid2Matrix: can a model write down a grid of coloured cells? (arXiv 2604.09687)

The answer needs no knowledge and has no prior to lean on, so errors show what is lost between the image encoder and
the text. Errors tend to lie on the borders of image patches, hence the accuracy map.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

PALETTE: dict[str, tuple[int, int, int]] = {
    "White": (255, 255, 255),
    "Red": (205, 78, 78),
    "Blue": (72, 105, 200),
    "Green": (85, 168, 104),
    "Orange": (221, 163, 85),
    "Purple": (153, 102, 204),
    "Yellow": (235, 215, 90),
    "Cyan": (100, 180, 190),
    "Pink": (215, 120, 155),
    "Brown": (160, 130, 110),
}

LAYOUTS = ("random", "stripes", "vertical_stripes", "checkerboard")

_OUTLINE = (60, 60, 60)
_NESTED_LIST = re.compile(r"\[\s*\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*\s*,?\s*\]")
_NUMBERED_ROW = re.compile(r"ROW(\d+)\s*=\s*\[([\d,\s-]*)\]", re.IGNORECASE)


def make_grid(height: int, width: int, colours: int = 3, layout: str = "random", seed: int = 0) -> np.ndarray:
    """A grid of colour numbers, int64 (height, width).

    Args:
        height: number of rows.
        width: number of columns.
        colours: number of colours, 1 to 10.
        layout: `random` (every colour at least once, the rest uniform), `stripes` (each row one colour),
            `vertical_stripes` (each column one colour) or `checkerboard`.
        seed: for `random`; the published data sets use a start value plus the number of the sample.

    Raises:
        ValueError: an argument is out of range.
    """
    if height < 1 or width < 1 or not 1 <= colours <= len(PALETTE):
        raise ValueError(
            f"a grid of {height} x {width} cells in {colours} colours is not possible; sizes start at 1 and there are "
            f"{len(PALETTE)} colours"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"the grid layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    rows, columns = np.indices((height, width))
    if layout == "stripes":
        return rows % colours
    if layout == "vertical_stripes":
        return columns % colours
    if layout == "checkerboard":
        return (rows + columns) % colours
    if height * width < colours:
        raise ValueError(f"{height} x {width} cells cannot show {colours} colours at least once each")
    generator = np.random.default_rng(seed)
    cells = generator.integers(0, colours, size=height * width)
    cells[:colours] = np.arange(colours)
    generator.shuffle(cells)
    return cells.reshape(height, width)


def outline_width(cell: float) -> int:
    """Width of the dark line around a cell of this size, both in pixels: none below 4, then at least 2, at most 10."""
    if cell < 4:
        return 0
    return 2 if cell < 20 else min(max(int(cell * 0.05), 2), 10)


def draw_grid(grid: np.ndarray, size: int = 512) -> Image.Image:
    """The picture of a grid, RGB, `size` x `size` pixels, cells outlined."""
    height, width = grid.shape
    colours = list(PALETTE.values())
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    line = outline_width(min(size / width, size / height))
    for row in range(height):
        for column in range(width):
            corners = [
                round(column * size / width),
                round(row * size / height),
                round((column + 1) * size / width),
                round((row + 1) * size / height),
            ]
            draw.rectangle(corners, fill=colours[grid[row, column]], outline=_OUTLINE if line else None, width=line)
    return image


def grid_prompt(height: int, width: int, colours: int = 3) -> str:
    """The request to write the grid down; wording ours, content as in the paper's."""
    digits = ", ".join(f"{name}: {number}" for number, name in enumerate(list(PALETTE)[:colours]))
    return (
        f"The image shows a grid of coloured cells with {height} rows and {width} columns. Write it down as numbers, "
        f"row by row from top to bottom, with these numbers for the colours: {{{digits}}}. Answer only with a list of "
        f"{height} lists of {width} numbers, such as [[0, 1], [2, 0]] for a grid of two rows and two columns."
    )


def answer_length(height: int, width: int) -> int:
    """The number of new tokens the published runs allow for a grid of this size."""
    return min(4 * height * width + 20 * height + 50, 2048)


def parse_grid(text: str, height: int, width: int) -> np.ndarray | None:
    """The grid an answer gives, or None where there is none to read.

    Tried in turn: a nested list; lines such as "ROW1=[0, 1]"; all numbers in the text, if they are exactly as many
    as there are cells. A grid that is read from a list or from lines may have another shape than asked for.
    """
    for match in _NESTED_LIST.finditer(text):
        try:
            rows = ast.literal_eval(match.group())
        except (ValueError, SyntaxError):
            continue
        if all(isinstance(cell, int) for row in rows for cell in row) and len({len(row) for row in rows}) == 1:
            return np.array(rows, dtype=np.int64)
    numbered = {int(number): re.findall(r"\d+", cells) for number, cells in _NUMBERED_ROW.findall(text)}
    rows = [numbered[number] for number in sorted(numbered)]
    if rows and len({len(row) for row in rows}) == 1:
        return np.array(rows, dtype=np.int64)
    numbers = re.findall(r"\d+", text)
    if len(numbers) == height * width:
        return np.array(numbers, dtype=np.int64).reshape(height, width)
    return None


@dataclass(frozen=True, kw_only=True)
class GridScore:
    """How well grids were written down. Unreadable answers and wrong shapes count as wrong in every cell.

    Attributes:
        grids: number of grids.
        exact: grids with every cell right.
        cells: number of cells.
        correct_cells: cells that are right.
        parse_errors: answers without a grid to read.
        shape_mismatches: answers with a grid of another shape.
    """

    grids: int
    exact: int
    cells: int
    correct_cells: int
    parse_errors: int
    shape_mismatches: int

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates (fractions), as JSON can hold them."""
        grids, cells = max(self.grids, 1), max(self.cells, 1)
        return {
            "metric": "Grid2Matrix",
            **asdict(self),
            "exact_match": self.exact / grids,
            "cell_accuracy": self.correct_cells / cells,
            "parse_error_rate": self.parse_errors / grids,
            "shape_mismatch_rate": self.shape_mismatches / grids,
        }


def correct_cells(grid: np.ndarray, answer: np.ndarray | None) -> np.ndarray:
    """Which cells of a grid an answer has right, bool (height, width); none where there is no grid of this shape."""
    if answer is None or answer.shape != grid.shape:
        return np.zeros(grid.shape, dtype=bool)
    return answer == grid


def score_grids(grids: Sequence[np.ndarray], answers: Sequence[str]) -> GridScore:
    """Score the texts of the answers against the grids they were asked about.

    Raises:
        ValueError: there are more grids than answers or fewer.
    """
    read = [parse_grid(text, *grid.shape) for grid, text in zip(grids, answers, strict=True)]
    correct = [correct_cells(grid, answer) for grid, answer in zip(grids, read)]
    return GridScore(
        grids=len(grids),
        exact=sum(bool(right.all()) for right in correct),
        cells=sum(grid.size for grid in grids),
        correct_cells=sum(int(right.sum()) for right in correct),
        parse_errors=sum(answer is None for answer in read),
        shape_mismatches=sum(answer is not None and answer.shape != grid.shape for grid, answer in zip(grids, read)),
    )


def accuracy_map(grids: Sequence[np.ndarray], answers: Sequence[str]) -> np.ndarray:
    """Share of right cells at every place of grids of one shape, float64 (height, width).

    Raises:
        ValueError: there are no grids, or they differ in shape, or the numbers of grids and answers differ.
    """
    if len({grid.shape for grid in grids}) != 1:
        raise ValueError("an accuracy map needs grids, all of one shape")
    correct = [correct_cells(grid, parse_grid(text, *grid.shape)) for grid, text in zip(grids, answers, strict=True)]
    return np.mean(correct, axis=0)


def cells_on_patch_borders(height: int, width: int, size: int = 512, patch: int = 16) -> np.ndarray:
    """Which cells a border between image patches runs through, bool (height, width).

    Args:
        height: rows of the grid.
        width: columns of the grid.
        size: side of the picture in pixels.
        patch: side of a patch in pixels, 16 for the encoder's patches, 32 where four are merged into one token.
    """

    def crossed(count: int) -> np.ndarray:
        edges = [(index * size / count, (index + 1) * size / count) for index in range(count)]
        borders: Iterable[int] = range(patch, size, patch)
        return np.array([any(start < border < end for border in borders) for start, end in edges], dtype=bool)

    return crossed(height)[:, None] | crossed(width)[None, :]
