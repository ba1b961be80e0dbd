"""The share of attention that is on the picture, over the answer, as a small SVG plot."""

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_guard.demo.marked_answer import bare, escape
from vlm_guard.demo.words import Word

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 180, 66, 34, 14


def word_shares(words: Sequence[Word], image_share: np.ndarray) -> list[float]:
    """Mean share of each word's tokens."""
    return [float(np.mean([image_share[step] for step in word.steps])) for word in words]


def share_plot(
    words: Sequence[Word], lines: Mapping[str, Sequence[float]], selected: int | None = None, of: str = ""
) -> str:
    """The plot.

    Args:
        words: the words along the axis.
        lines: by label ("plain", "guarded") one share per word, 0 to 1.
        selected: number of the word to mark.
        of: what the shares are of, for the caption.
    """
    highest = max((max(values) for values in lines.values() if len(values)), default=0.0)
    top = max(0.1, np.ceil(highest * 10) / 10)
    count = max(1, len(words) - 1)

    def across(place: float) -> float:
        return LEFT + place * (WIDTH - LEFT - 10) / count

    def down(value: float) -> float:
        return TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in (0.0, top / 2, top):
        y = down(tick)
        parts.append(f'<line class="vg-tick" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>')
    if selected is not None and 0 <= selected < len(words):
        x = across(selected)
        parts.append(f'<line class="vg-here" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        anchor = "start" if selected < count * 0.15 else "end" if selected > count * 0.85 else "middle"
        parts.append(
            f'<text class="vg-here-word" x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="{anchor}">'
            f"{escape(bare(words[selected]))}</text>"
        )
    else:
        parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">first word</text>')
        parts.append(f'<text x="{WIDTH - 10}" y="{HEIGHT - 12}" text-anchor="end">last word</text>')
    for label, values in lines.items():
        points = " ".join(f"{across(place):.1f},{down(value):.1f}" for place, value in enumerate(values))
        parts.append(f'<polyline class="vg-line-{escape(label)}" points="{points}"/>')
    means = "; ".join(f"{label}: {100 * float(np.mean(values)):.0f} % on average" for label, values in lines.items())
    key = "".join(
        f'<span class="vg-key"><svg width="30" height="8" aria-hidden="true"><line class="vg-line-{escape(label)}" '
        f'x1="0" x2="30" y1="4" y2="4"/></svg>{escape(label)}</span>'
        for label in lines
    )
    return (
        '<figure class="vg-plot"><figcaption>Share of attention on the picture, word by word'
        f"{escape(of)} {key}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Share of attention on the picture over '
        f'{len(words)} words; {escape(means)}">{"".join(parts)}</svg></figure>'
    )
