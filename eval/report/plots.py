"""Plots of a comparison. Needs matplotlib (`pip install vlm-guard-hf[plot]`)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_guard.eval.report.compare import Comparison
from vlm_guard.eval.run.metrics import ratio
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.run.results import RunResults
from vlm_guard.eval.run.statistics import LEVEL
from vlm_guard.eval.run.summary import BOOTSTRAP_SEED
from vlm_guard.untrusted.printed_text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any common colour blindness; the markers differ as well.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#999933")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_POSITIONS = 8
# A share of fewer mentions than this says nothing and would stretch the axis.
_FEWEST_MENTIONS = 10
_RESAMPLES = 1000


def _style(place: int) -> dict[str, Any]:
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}


def _figure(panels: int) -> tuple["Figure", "np.ndarray"]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'vlm-guard-hf[plot]'") from error
    figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def plot_chair(results: RunResults) -> "Figure":
    """CHAIR_i against recall, and against length: fewer hallucinations count only where neither was paid for it.

    Raises:
        ValueError: no method has captions.
    """
    methods = [method for method in results.methods if "chair_i" in method.estimates]
    if not methods:
        raise ValueError("these runs have no captions (task chair) to plot")
    figure, panels = _figure(2)
    for axes, name, label, scale in zip(
        panels, ("recall", "mean_words"), ("recall in %", "words per caption"), (100, 1)
    ):
        for place, method in enumerate(methods):
            across, up = method.estimates[name], method.estimates["chair_i"]
            axes.errorbar(
                scale * across.value,
                100 * up.value,
                xerr=_arms(across.value, across.low, across.high, scale),
                yerr=_arms(up.value, up.low, up.high, 100),
                label=_label(method.label),
                capsize=3,
                **_style(place),
            )
        axes.set_xlabel(label)
        axes.set_ylabel("CHAIR_i in % (lower is better)")
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False)
    _entitle(figure, results, f"bars: {round(100 * results.statistics['level'])} % bootstrap intervals over images")
    return figure


def _label(text: str) -> str:
    """Text as it stands: matplotlib would set what is between dollar signs as a formula."""
    return one_line(text).replace("$", "\\$")


def _arms(value: float, low: float, high: float, scale: float) -> list[list[float]]:
    return [[max(0.0, scale * (value - low))], [max(0.0, scale * (high - value))]]


def mention_order(records: Sequence[Record], positions: int = _POSITIONS) -> np.ndarray:
    """[images, positions, 2]: hallucinated mentions and all mentions by their place in the caption.

    The last position holds all mentions from there on.
    """
    captions = [record for record in records if record["task"] == "chair" and "error" not in record]
    table = np.zeros((len(captions), positions, 2))
    for row, record in enumerate(captions):
        for place, mention in enumerate(record["score"]["mentions"]):
            table[row, min(place, positions - 1)] += (mention["hallucinated"], 1)
    return table


def plot_mention_order(comparison: Comparison) -> "Figure":
    """The share of hallucinated mentions by their place in the caption, with bootstrap bands.

    Raises:
        ValueError: no method has captions.
    """
    figure, (axes,) = _figure(1)
    drawn = 0
    for place, method in enumerate(comparison.results.methods):
        table = mention_order(comparison.records[method.label])
        if not len(table):
            continue
        drawn += 1
        total = table.sum(0)
        known = total[:, 1] >= _FEWEST_MENTIONS
        positions = np.arange(1, table.shape[1] + 1)[known]
        generator = np.random.default_rng(BOOTSTRAP_SEED)
        draws = np.stack([table[generator.integers(len(table), size=len(table))].sum(0) for _ in range(_RESAMPLES)])
        shares = 100 * ratio(draws[..., 0], draws[..., 1])
        outside = (1 - LEVEL) / 2
        low, high = np.quantile(shares, [outside, 1 - outside], axis=0)
        style = _style(place)
        axes.plot(positions, 100 * ratio(total[:, 0], total[:, 1])[known], label=_label(method.label), **style)
        axes.fill_between(positions, low[known], high[known], color=style["color"], alpha=0.12, linewidth=0)
    if not drawn:
        raise ValueError("these runs have no captions (task chair) to plot")
    axes.set_xticks(range(1, _POSITIONS + 1), [*map(str, range(1, _POSITIONS)), f"{_POSITIONS}+"])
    axes.set_xlabel(f"place of the object mention in the caption (at least {_FEWEST_MENTIONS} mentions)")
    axes.set_ylabel("hallucinated in %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _entitle(figure, comparison.results, f"bands: {round(100 * LEVEL)} % bootstrap intervals over images")
    return figure


def plot_pope(results: RunResults) -> "Figure":
    """POPE's ladder: F1 and yes ratio from random over popular to adversarial questions.

    Raises:
        ValueError: no method has yes/no answers.
    """
    methods = [method for method in results.methods if method.pope]
    if not methods:
        raise ValueError("these runs have no yes/no answers (task pope) to plot")
    strategies = list(methods[0].pope["strategies"])
    figure, panels = _figure(2)
    for axes, rate, label in zip(panels, ("f1", "yes_ratio"), ("F1 in %", "answered yes in %")):
        for place, method in enumerate(methods):
            found = [method.estimates.get(f"pope.{strategy}.{rate}") for strategy in strategies]
            known = [(position, estimate) for position, estimate in enumerate(found) if estimate is not None]
            offset = 0.06 * (place - (len(methods) - 1) / 2)
            arms = np.hstack([_arms(item.value, item.low, item.high, 100) for _, item in known])
            axes.errorbar(
                [position + offset for position, _ in known],
                [100 * item.value for _, item in known],
                yerr=arms,
                label=_label(method.label),
                capsize=3,
                **_style(place),
            )
        axes.set_xticks(range(len(strategies)), strategies)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[1].axhline(50, color="grey", linewidth=1, linestyle=":")
    panels[1].annotate(
        "as many as there are", (0, 50), textcoords="offset points", xytext=(0, 4), fontsize=8, color="grey"
    )
    panels[0].legend(frameon=False)
    _entitle(figure, results, f"bars: {round(100 * results.statistics['level'])} % bootstrap intervals over images")
    return figure


def _entitle(figure: "Figure", results: RunResults, note: str) -> None:
    data = results.data
    title = _label(f"{results.model['name']} on {data['name']}, {data['images']} images")
    figure.suptitle(f"{title}\n{note}", fontsize=9)


def save_plots(comparison: Comparison, folder: Path, style: str = "png") -> list[Path]:
    """Draw every plot the comparison has data for.

    Args:
        comparison: from `compare_runs`.
        folder: where the files go; made if absent.
        style: file format that matplotlib can write: png, svg or pdf.

    Returns:
        The files written.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: unknown format.
    """
    if style not in ("png", "svg", "pdf"):
        raise ValueError(f"the plot format is {style!r}; it must be png, svg or pdf")
    results = comparison.results
    tasks = {task for method in results.methods for task in method.samples}
    plots: list[tuple[str, Callable[[], Figure]]] = []
    if "chair" in tasks:
        plots.append(("chair", lambda: plot_chair(results)))
        plots.append(("mention-order", lambda: plot_mention_order(comparison)))
    if "pope" in tasks:
        plots.append(("pope", lambda: plot_pope(results)))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in plots:
        path = folder / f"{name}.{style}"
        draw().savefig(path, dpi=150)
        written.append(path)
    return written
