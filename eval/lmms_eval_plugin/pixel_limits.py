"""`min_pixels` and `max_pixels`, as lmms-eval's own models take them: between how many pixels a picture is scaled.

Qwen's processors and their relatives scale every picture so that its number of pixels lies between two limits, which
decide how many visual tokens there are. Processors that cut or pad pictures to a fixed size have no such limits.
"""

from typing import Any

_EDGES = ("shortest_edge", "longest_edge")  # their names in transformers, though they are areas


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set a processor's limits; None leaves one as the checkpoint has it.

    Args:
        processor: the processor; it is changed.
        min_pixels: fewest pixels of a picture, height times width.
        max_pixels: most pixels.

    Raises:
        ValueError: the processor has no such limits, or they are no whole numbers from 1 in ascending order.
    """
    if min_pixels is None and max_pixels is None:
        return
    images: Any = getattr(processor, "image_processor", None)
    known = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    if "min_pixels" not in known or any(images.size.get(edge) is None for edge in _EDGES):
        raise ValueError(
            f"min_pixels and max_pixels are limits of processors such as Qwen's; {type(processor).__name__} has none: "
            "leave both out"
        )
    low, high = (images.size[edge] if given is None else given for edge, given in zip(_EDGES, (min_pixels, max_pixels)))
    if not all(isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in (low, high)):
        raise ValueError(f"min_pixels and max_pixels are {low!r} and {high!r}; allowed: whole numbers from 1")
    if low > high:
        raise ValueError(f"min_pixels is {low} and max_pixels {high}; the first must not be larger")
    images.size = type(images.size)(**dict(zip(_EDGES, (low, high))))
