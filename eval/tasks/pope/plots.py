"""POPE's plot: F1 and yes ratio from the easiest to the hardest questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlm_guard.eval.tasks.shared.drawing import Drawn, arms, bars_note, entitle, make_figure, plain, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_pope(drawn: Drawn) -> Figure:
    """POPE's ladder: F1 and yes ratio from random over popular to adversarial questions.

    Raises:
        ValueError: no method has yes/no answers.
    """
    results = drawn.results
    methods = [method for method in results.methods if "pope.mean.f1" in method.estimates]
    if not methods:
        raise ValueError("these runs have no yes/no answers (task pope) to plot")
    names = [name.split(".") for method in methods for name in method.estimates if name.startswith("pope.")]
    strategies = [name for name in dict.fromkeys(parts[1] for parts in names) if name != "mean"]
    figure, panels = make_figure(2)
    for axes, rate, label in zip(panels, ("f1", "yes_ratio"), ("F1 in %", "answered yes in %")):
        for place, method in enumerate(methods):
            found = [method.estimates.get(f"pope.{strategy}.{rate}") for strategy in strategies]
            known = [(position, estimate) for position, estimate in enumerate(found) if estimate is not None]
            offset = 0.06 * (place - (len(methods) - 1) / 2)
            axes.errorbar(
                [position + offset for position, _ in known],
                [100 * item.value for _, item in known],
                yerr=np.hstack([arms(item.value, item.low, item.high, 100) for _, item in known]),
                label=plain(method.label),
                capsize=3,
                **style(place),
            )
        axes.set_xticks(range(len(strategies)), strategies)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[1].axhline(50, color="grey", linewidth=1, linestyle=":")
    panels[1].annotate(
        "as many as there are", (0, 50), textcoords="offset points", xytext=(0, 4), fontsize=8, color="grey"
    )
    panels[0].legend(frameon=False)
    entitle(figure, results, bars_note(results))
    return figure
