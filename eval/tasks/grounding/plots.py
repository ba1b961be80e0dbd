"""The risk-coverage plot: how many of the kept mentions are wrong when the surest are kept first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlm_guard.eval.tasks.grounding.counts import POSITION, SCORE, judged
from vlm_guard.eval.tasks.grounding.unlabelled import has_truth
from vlm_guard.eval.tasks.shared.drawing import Drawn, entitle, make_figure, plain, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESAMPLES = 300
_COVERAGES = np.linspace(0.05, 1.0, 60)


def plot_risk_coverage(drawn: Drawn) -> Figure:
    """Risk against coverage of every method's score (lines, with bootstrap bands) and of the place (dashed).

    Raises:
        ValueError: no method has scored mentions.
    """
    figure, (axes,) = make_figure(1)
    level, seed = drawn.results.statistics["level"], drawn.results.statistics.get("seed", 0)
    shown = 0
    for place, method in enumerate(drawn.results.methods):
        pictures = [
            [(mention.values[SCORE], mention.values[POSITION], mention.good) for mention in judged(record["score"])]
            for record in drawn.records[method.label]
            if record["task"] == "grounding" and "error" not in record and has_truth(record["score"])
        ]
        if not any(pictures):
            continue
        shown += 1
        look = style(place)
        generator = np.random.default_rng(seed)
        draws = [generator.integers(len(pictures), size=len(pictures)) for _ in range(_RESAMPLES)]
        bands = np.stack([_risks([mention for index in draw for mention in pictures[index]], 0) for draw in draws])
        outside = (1 - level) / 2
        low, high = 100 * np.quantile(bands, [outside, 1 - outside], axis=0)
        every = [mention for picture in pictures for mention in picture]
        axes.plot(100 * _COVERAGES, 100 * _risks(every, 0), color=look["color"], label=plain(method.label))
        axes.plot(100 * _COVERAGES, 100 * _risks(every, 1), color=look["color"], linestyle="--", linewidth=1)
        axes.fill_between(100 * _COVERAGES, low, high, color=look["color"], alpha=0.15, linewidth=0)
    if not shown:
        raise ValueError(
            "these runs have no scored mentions (task grounding) of pictures with labels; without labels nobody knows "
            "which mentions are wrong, so there is no risk to plot"
        )
    axes.set_xlabel("mentions kept in %, the surest first (dashed: the earliest first)")
    axes.set_ylabel("of these not in the picture, in %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    entitle(figure, drawn.results, f"bands: {round(100 * level)} % bootstrap intervals over images")
    return figure


def _risks(mentions: list[tuple[float, float, bool]], value: int) -> np.ndarray:
    """The risk at each of `_COVERAGES` when mentions are kept by one of their two values."""
    values = np.array([mention[value] for mention in mentions])
    wrong = np.array([not mention[2] for mention in mentions])[np.argsort(-values, kind="stable")]
    kept = np.arange(1, len(wrong) + 1)
    return np.interp(_COVERAGES, kept / len(wrong), np.cumsum(wrong) / kept)
