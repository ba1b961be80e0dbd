"""What the tasks' plots share: what is drawn from, colours, panels, error bars. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_guard.environment import install_line
from vlm_guard.untrusted.printed_text import one_line

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from vlm_guard.eval.run.results import RunResults
    from vlm_guard.eval.tasks.base import Record

# Okabe and Ito's colours, told apart with any common colour blindness; the markers differ as well.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#999933")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a plot is drawn from.

    Attributes:
        results: methods of one or several runs beside each other.
        records: the records of every method by its label.
    """

    results: RunResults
    records: Mapping[str, Sequence[Record]]


def style(place: int) -> dict[str, Any]:
    """Colour and marker of the method at this place."""
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}


def make_figure(panels: int) -> tuple[Figure, np.ndarray]:
    """A figure with panels side by side.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {install_line('plot')}") from error
    figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def plain(text: str) -> str:
    """Text as it stands: matplotlib would set what is between dollar signs as a formula."""
    return one_line(text).replace("$", "\\$")


def arms(value: float, low: float, high: float, scale: float) -> list[list[float]]:
    """The lengths of an error bar, as matplotlib takes them, of an interval around a value."""
    return [[max(0.0, scale * (value - low))], [max(0.0, scale * (high - value))]]


def entitle(figure: Figure, results: RunResults, note: str) -> None:
    """Write above a figure what was measured."""
    data = results.data
    title = plain(f"{results.model['name']} on {data['name']}, {data['images']} images")
    figure.suptitle(f"{title}\n{note}", fontsize=9)


def bars_note(results: RunResults) -> str:
    """What error bars are, for `entitle`."""
    return f"bars: {round(100 * results.statistics['level'])} % bootstrap intervals over images"
