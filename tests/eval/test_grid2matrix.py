"""Grid2Matrix: generator, picture, prompt, parser and scores on small grids."""

import json

import numpy as np
import pytest

from vlm_guard.eval.tasks.grid2matrix import (
    LAYOUTS,
    PALETTE,
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


def test_layouts():
    assert make_grid(3, 2, 2, "stripes").tolist() == [[0, 0], [1, 1], [0, 0]]
    assert make_grid(2, 3, 2, "vertical_stripes").tolist() == [[0, 1, 0], [0, 1, 0]]
    assert make_grid(2, 3, 3, "checkerboard").tolist() == [[0, 1, 2], [1, 2, 0]]


def test_random_grids_show_every_colour_and_repeat_by_seed():
    for seed in range(20):
        grid = make_grid(3, 4, 10, seed=seed)
        assert set(grid.flat) == set(range(10))
        assert np.array_equal(grid, make_grid(3, 4, 10, seed=seed))
    assert not np.array_equal(make_grid(8, 8, seed=0), make_grid(8, 8, seed=1))


@pytest.mark.parametrize("arguments", [(0, 2), (2, 2, 11), (2, 2, 0), (2, 2, 5), (2, 2, 2, "spiral")])
def test_impossible_grids_are_explained(arguments):
    with pytest.raises(ValueError, match=r"grid|cells"):
        make_grid(*arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_picture_shows_the_grid(layout):
    grid = make_grid(9, 7, 3, layout)
    image = draw_grid(grid)
    assert image.size == (512, 512)
    colours = list(PALETTE.values())
    for row in range(9):
        for column in range(7):
            middle = (round((column + 0.5) * 512 / 7), round((row + 0.5) * 512 / 9))
            assert image.getpixel(middle) == colours[grid[row, column]]
    assert image.getpixel((0, 0)) == (60, 60, 60)


def test_outlines():
    assert [outline_width(cell) for cell in (3.9, 4, 19.9, 20, 60, 100, 512)] == [0, 2, 2, 2, 3, 5, 10]
    assert draw_grid(np.zeros((2, 2), dtype=int), size=6).getpixel((0, 0)) == (255, 255, 255)


def test_the_prompt_names_shape_and_colours():
    prompt = grid_prompt(3, 4, 3)
    assert "3 rows and 4 columns" in prompt
    assert "{White: 0, Red: 1, Blue: 2}" in prompt
    assert "Green" not in prompt


def test_answer_length():
    assert answer_length(3, 3) == 4 * 9 + 60 + 50
    assert answer_length(32, 32) == 2048


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[0, 1], [2, 0]]", [[0, 1], [2, 0]]),
        ("Here it is:\n```python\n[\n  [0, 1],\n  [2, 0],\n]\n```", [[0, 1], [2, 0]]),
        ("ROW1=[0, 1]\nROW2=[2,0]", [[0, 1], [2, 0]]),
        ("0 1\n2 0", [[0, 1], [2, 0]]),
        ("[[0, 1, 2], [2, 0, 1]]", [[0, 1, 2], [2, 0, 1]]),
        ("[[0, 1], [2]]", None),
        ("[[0, 1], [2, x]]", None),
        ("[['0', 1], [2, 0]] then 5", None),
        ("I see red.", None),
        ("", None),
    ],
)
def test_parser(text, expected):
    grid = parse_grid(text, 2, 2)
    assert (None if grid is None else grid.tolist()) == expected


GRIDS = [np.array([[0, 1], [2, 0]])] * 4
ANSWERS = ["[[0, 1], [2, 0]]", "[[0, 1], [0, 0]]", "none", "[[0, 1, 2], [2, 0, 1]]"]


def test_scores_by_hand():
    score = score_grids(GRIDS, ANSWERS)
    assert (score.grids, score.exact, score.cells, score.correct_cells) == (4, 1, 16, 7)
    assert (score.parse_errors, score.shape_mismatches) == (1, 1)
    record = json.loads(json.dumps(score.to_dict()))
    assert record["cell_accuracy"] == pytest.approx(7 / 16)
    assert record["exact_match"] == record["parse_error_rate"] == record["shape_mismatch_rate"] == 1 / 4
    assert score_grids([], []).to_dict()["cell_accuracy"] == 0
    with pytest.raises(ValueError, match="zip"):
        score_grids(GRIDS, ANSWERS[:1])


def test_the_map_by_hand():
    assert accuracy_map(GRIDS, ANSWERS).tolist() == [[0.5, 0.5], [0.25, 0.5]]
    with pytest.raises(ValueError, match="all of one shape"):
        accuracy_map([*GRIDS, make_grid(3, 3)], [*ANSWERS, ""])


def test_patch_borders():
    assert not cells_on_patch_borders(32, 32, patch=16).any()  # cells and patches coincide
    crossed = cells_on_patch_borders(3, 1, size=48, patch=20)
    assert crossed.shape == (3, 1)
    assert cells_on_patch_borders(3, 3, size=48, patch=24).tolist() == [
        [False, True, False],
        [True, True, True],
        [False, True, False],
    ]
