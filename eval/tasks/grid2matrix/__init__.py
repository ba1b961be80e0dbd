"""Grid2Matrix: drawn grids of coloured cells, their prompt, the reading of answers, scores; the task."""

from vlm_guard.eval.tasks.grid2matrix.grids import (
    LAYOUTS,
    PALETTE,
    GridScore,
    accuracy_map,
    answer_length,
    cells_on_patch_borders,
    draw_grid,
    grid_prompt,
    make_grid,
    outline_width,
    parse_grid,
    score_grids,
)

__all__ = [
    "LAYOUTS",
    "PALETTE",
    "GridScore",
    "accuracy_map",
    "answer_length",
    "cells_on_patch_borders",
    "draw_grid",
    "grid_prompt",
    "make_grid",
    "outline_width",
    "parse_grid",
    "score_grids",
]
