"""Plots of the numbers from ``attention_facts``. Needs matplotlib (the extra ``plot``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def plot_attention(facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``attention_shares.png``, ``attention_sinks.png`` and ``attention_heads.png`` into ``folder``."""
    from matplotlib.figure import Figure

    paths = []
    for name, draw in (("shares", _shares), ("sinks", _sinks), ("heads", _heads)):
        figure = Figure(figsize=(10, 4), layout="constrained")
        draw(figure, facts)
        path = folder / f"attention_{name}.png"
        figure.savefig(path, dpi=120)
        paths.append(path)
    return paths


def _shares(figure: Any, facts: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    layers = np.arange(len(facts["image_share"]))
    bottom = np.zeros(len(layers))
    for name, label in (
        ("image_share", "image"),
        ("first_token_share", "first token"),
        ("prompt_text_share", "prompt text"),
        ("answer_share", "answer so far"),
    ):
        values = np.asarray(facts[name])
        left.bar(layers, values, bottom=bottom, label=label)
        bottom += values
    left.set(xlabel="layer", ylabel="share of attention", title="Where the answer's tokens look")
    left.legend(loc="upper right", fontsize=8)
    for layer, parts in enumerate(facts.get("image_share_by_part", [])):
        right.plot(np.arange(1, len(parts) + 1), parts, marker="o", label=f"layer {layer}")
    right.set(xlabel="quarter of the answer", ylabel="attention on the image", title="Fading along the answer")
    right.set_xticks(range(1, 5))
    right.legend(fontsize=8)


def _sinks(figure: Any, facts: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    ratio = facts["largest_visual_ratio"]
    left.plot(range(len(ratio)), ratio, marker="o")
    left.axhline(facts["sink_ratio"], color="gray", linestyle="--", label="counted as a sink")
    left.set(xlabel="layer", ylabel="times the mean visual token", title="Most attended visual token")
    left.legend(fontsize=8)
    for name, label in (("first_token_norm", "first token"), ("largest_visual_norm", "largest visual token")):
        right.plot(range(len(facts[name])), facts[name], marker="o", label=label)
    right.set(xlabel="hidden state after layer", ylabel="length / median length", title="Massive activations")
    right.legend(fontsize=8)


def _heads(figure: Any, facts: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2)
    for panel, name, title in (
        (panels[0], "image_share_by_head", "Attention on the image"),
        (panels[1], "image_dependence_by_head", "Change of the head's output without the image"),
    ):
        drawn = panel.imshow(np.asarray(facts[name]), aspect="auto", cmap="viridis")
        panel.set(xlabel="head", ylabel="layer", title=title)
        figure.colorbar(drawn, ax=panel)
