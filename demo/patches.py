"""The patch grid of a picture as the model at hand cuts it."""

import math


def square_grid(count: int) -> tuple[int, int]:
    """Rows and columns of `count` visual tokens that form a square.

    Raises:
        ValueError: `count` is no square number.
    """
    side = math.isqrt(count)
    if side * side != count or count == 0:
        raise ValueError(f"{count} visual tokens do not form a square, so they cannot be placed on the picture")
    return side, side
