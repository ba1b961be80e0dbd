"""What the methods found out about a picture, drawn below the heat-maps."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from vlm_guard.demo.heat_maps import ColourScale, as_grid, data_uri, enlarge, outline_cells, overlay
from vlm_guard.demo.patches import PictureView
from vlm_guard.method import Finding, MarkedHeads, MarkedTokens, PictureMap, ReplacedPicture

CELL = 16


def findings_html(view: PictureView | None, findings: Sequence[Finding]) -> str:
    """Words, marked tokens, marked heads, maps and pictures; empty where there is nothing to show.

    Args:
        view: the picture as the plain model sees it; tokens and maps need it, the others do not.
        findings: what the guarded model's methods found out.
    """
    parts = [shown for finding in findings if (shown := _one(view, finding))]
    if not parts:
        return ""
    return (
        '<div class="vg-findings"><h4>What the method found in this picture</h4>'
        f'<div class="vg-findings-row">{"".join(parts)}</div></div>'
    )


def _one(view: PictureView | None, finding: Finding) -> str:
    if isinstance(finding, MarkedHeads):
        return _heads_html(finding)
    if isinstance(finding, ReplacedPicture):
        return _figure(finding, f'<img src="{data_uri(enlarge(finding.picture))}" alt="{escape(finding.title)}">')
    if isinstance(finding, MarkedTokens | PictureMap):
        if view is None:
            return ""
        if isinstance(finding, PictureMap):
            cells = as_grid(finding.values.astype(np.float32), finding.values.shape)
            drawn, seen = overlay(view.image, cells, ColourScale.of([cells])), f"Heat-map. {finding.text}"
        else:
            drawn = outline_cells(view.image, as_grid(finding.marked, view.grid))
            seen = f"The picture with {int(finding.marked.sum())} crossed-out patches, {finding.name}"
        return _figure(finding, f'<img src="{data_uri(drawn)}" alt="{escape(seen)}">')
    return f'<div class="vg-finding"><strong>{escape(finding.title)}.</strong> {escape(finding.text)}</div>'


def _figure(finding: Finding, drawn: str, kind: str = "vg-map") -> str:
    return (
        f'<figure class="{kind}"><figcaption>{escape(finding.title)}</figcaption>{drawn}'
        f"<p>{escape(finding.text)}</p></figure>"
    )


def _heads_html(finding: MarkedHeads) -> str:
    chosen: Mapping[int, np.ndarray] = finding.marked
    layers = sorted(chosen)
    heads = len(chosen[layers[0]])
    left, top = 34, 22
    parts = [
        f'<text x="{left + head * CELL + CELL / 2}" y="14" text-anchor="middle">{head}</text>'
        for head in range(0, heads, 1 if heads <= 16 else 4)
    ]
    for row, layer in enumerate(layers):
        y = top + row * CELL
        parts.append(f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{layer}</text>')
        for head in range(heads):
            x = left + head * CELL
            name = "vg-head-on" if chosen[layer][head] else "vg-head-off"
            parts.append(
                f'<rect class="{name}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="2"/>'
            )
            if chosen[layer][head]:
                parts.append(f'<circle cx="{x + CELL / 2}" cy="{y + CELL / 2}" r="2.5"/>')
    width, height = left + heads * CELL + 4, top + len(layers) * CELL + 4
    total = sum(int(row.sum()) for row in chosen.values())
    drawn = (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width * 1.4:.0f}px" role="img" '
        f'aria-label="Layer by head map: {total} of {heads * len(layers)} heads chosen">{"".join(parts)}</svg>'
    )
    return _figure(finding, drawn, "vg-map vg-heads")
