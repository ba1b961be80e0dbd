"""CHAIR's plots: against recall and length, and by the place of a mention in its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlm_guard.eval.tasks.base import Record
from vlm_guard.eval.tasks.shared.drawing import Drawn, arms, bars_note, entitle, make_figure, plain, style
from vlm_guard.eval.tasks.shared.metric import ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POSITIONS = 8
# A share of fewer mentions than this says nothing and would stretch the axis.
_FEWEST_MENTIONS = 10
_RESAMPLES = 1000


def plot_chair(drawn: Drawn) -> Figure:
    """CHAIR_i against recall, and against length: fewer hallucinations count only where neither was paid for it.

    Raises:
        ValueError: no method has captions.
    """
    results = drawn.results
    methods = [method for method in results.methods if method.estimate("chair_i") is not None]
    if not methods:
        raise ValueError("these runs have no captions (task chair) that name anything to plot")
    figure, panels = make_figure(2)
    for axes, name, label, scale in zip(
        panels, ("recall", "mean_words"), ("recall in %", "words per caption"), (100, 1)
    ):
        for place, method in enumerate(methods):
            across, up = method.estimates[name], method.estimates["chair_i"]
            axes.errorbar(
                scale * across.value,
                100 * up.value,
                xerr=arms(across.value, across.low, across.high, scale),
                yerr=arms(up.value, up.low, up.high, 100),
                label=plain(method.label),
                capsize=3,
                **style(place),
            )
        axes.set_xlabel(label)
        axes.set_ylabel("CHAIR_i in % (lower is better)")
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False)
    entitle(figure, results, bars_note(results))
    return figure


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


def plot_mention_order(drawn: Drawn) -> Figure:
    """The share of hallucinated mentions by their place in the caption, with bootstrap bands.

    Raises:
        ValueError: no method has captions.
    """
    figure, (axes,) = make_figure(1)
    level = drawn.results.statistics["level"]
    shown = 0
    for place, method in enumerate(drawn.results.methods):
        table = mention_order(drawn.records[method.label])
        if not len(table):
            continue
        shown += 1
        total = table.sum(0)
        known = total[:, 1] >= _FEWEST_MENTIONS
        positions = np.arange(1, table.shape[1] + 1)[known]
        low, high = _band(table, level, drawn.results.statistics.get("seed", 0))
        look = style(place)
        axes.plot(positions, 100 * ratio(total[:, 0], total[:, 1])[known], label=plain(method.label), **look)
        axes.fill_between(positions, low[known], high[known], color=look["color"], alpha=0.12, linewidth=0)
    if not shown:
        raise ValueError("these runs have no captions (task chair) to plot")
    axes.set_xticks(range(1, _POSITIONS + 1), [*map(str, range(1, _POSITIONS)), f"{_POSITIONS}+"])
    axes.set_xlabel(f"place of the object mention in the caption (at least {_FEWEST_MENTIONS} mentions)")
    axes.set_ylabel("hallucinated in %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    entitle(figure, drawn.results, f"bands: {round(100 * level)} % bootstrap intervals over images")
    return figure


def _band(table: np.ndarray, level: float, seed: int) -> np.ndarray:
    """[2, positions] lower and upper end, in percent, of the bootstrap interval of the share at every place."""
    generator = np.random.default_rng(seed)
    draws = np.stack([table[generator.integers(len(table), size=len(table))].sum(0) for _ in range(_RESAMPLES)])
    outside = (1 - level) / 2
    return np.quantile(100 * ratio(draws[..., 0], draws[..., 1]), [outside, 1 - outside], axis=0)
