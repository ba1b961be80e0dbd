"""Problems drawn at random: sizes that nobody would write down, each of them often at its smallest.

Cases made by hand hold what their author thought of. These hold combinations: one head, one key-value group, one row,
odd lengths and dimensions, each with every edit, mask, layout and form of segments. The draw is seeded, so case number
17 of a seed is the same everywhere, and a failing one can be run alone by its name.
"""

import random

from vlm_guard.kernels.benchmark.cases import EDITS, LAYOUTS, MASKS, OUTPUT_EDITS, SEGMENTS, Case

DTYPES = ("float32", "bfloat16", "float16")
BOTH_OUTPUT_EDITS = ("everything", "outside policy")
# How often a size is drawn at its smallest: with five sizes, a problem in three then has two of them there.
AT_SMALLEST = 0.35


def random_cases(
    count: int, seed: int = 0, *, largest_rows: int = 24, largest_keys: int = 40
) -> list[tuple[Case, str]]:
    """`count` cases of different names with the dtype of each.

    Edits are taken in turn instead of drawn, so that every edit comes equally often, and so are masks and dtypes.

    Args:
        count: how many.
        seed: of the draw.
        largest_rows: most query rows; the interpreter's time grows with rows times keys.
        largest_keys: most keys; at least as many as rows.
    """
    draw = random.Random(seed)
    cases: dict[str, tuple[Case, str]] = {}
    while len(cases) < count:
        number = len(cases)
        case = _draw_case(draw, EDITS[number % len(EDITS)], MASKS[number % len(MASKS)], largest_rows, largest_keys)
        cases.setdefault(case.name, (case, DTYPES[number % len(DTYPES)]))
    return list(cases.values())


def _draw_case(draw: random.Random, edit: str, mask: str, largest_rows: int, largest_keys: int) -> Case:
    def size(smallest: int, largest: int) -> int:
        return smallest if draw.random() < AT_SMALLEST else draw.randint(smallest, largest)

    groups = size(1, 3)
    rows = size(1, largest_rows)
    head_dim = size(16, 90)
    return Case(
        batch=size(1, 3),
        heads=groups * size(1, 5),
        groups=groups,
        rows=rows,
        keys=size(rows, largest_keys),
        head_dim=head_dim,
        value_dim=None if draw.random() < 0.5 else size(16, 90),
        edit=edit,
        output_edit="both" if edit in BOTH_OUTPUT_EDITS else draw.choice(OUTPUT_EDITS),
        mask=mask,
        layout=draw.choice(LAYOUTS),
        segments=draw.choice(SEGMENTS),
        logits=draw.choice((1.0, 1.0, 30.0)),
        model_terms=draw.random() < 0.3,
    )
