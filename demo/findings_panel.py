"""What the methods found out about a picture, drawn below the heat-maps."""

import numpy as np
from PIL import Image

from vlm_guard.demo.heat_maps import ColourScale, as_grid, data_uri, enlarge, outline_cells, overlay
from vlm_guard.demo.method_findings import Findings
from vlm_guard.demo.patches import PictureView

CELL = 16


def findings_html(view: PictureView | None, findings: Findings) -> str:
    """VAR's sink tokens, VHR's heads, CARVE's map and picture; empty for methods that keep nothing of the kind.

    Args:
        view: the picture as the plain model sees it; maps need it, head tables do not.
        findings: what the guarded model's methods kept.
    """
    parts = []
    if findings.visual_sinks and view is not None:
        parts.append(_sinks_html(view, findings.visual_sinks, findings.text_sinks))
    if findings.contrast is not None and findings.refined is not None and view is not None:
        parts.append(_refined_html(view, findings.contrast, findings.refined, findings.kept_share))
    if findings.chosen_heads:
        parts.append(_heads_html(findings.chosen_heads, findings.head_factor))
    if not parts:
        return ""
    return (
        '<div class="vg-findings"><h4>What the method found in this picture</h4>'
        f'<div class="vg-findings-row">{"".join(parts)}</div></div>'
    )


def _refined_html(view: PictureView, contrast: np.ndarray, refined: Image.Image, kept: float) -> str:
    cells = as_grid(contrast.astype(np.float32), contrast.shape)
    drawn = overlay(view.image, cells, ColourScale.of([cells]))
    return (
        f'<figure class="vg-map"><figcaption>CARVE: contrast map</figcaption><img src="{data_uri(drawn)}" '
        'alt="Heat-map of where the model looks for the question more than for a general description">'
        "<p>Bright where the question draws more attention than a general description does.</p></figure>"
        '<figure class="vg-map"><figcaption>CARVE: refined picture</figcaption>'
        f'<img src="{data_uri(enlarge(refined))}" alt="The regions that stand out, cut out and magnified">'
        f"<p>{100 * kept:.0f} % of the picture is kept and magnified; the guarded answer is about this.</p></figure>"
    )


def _sinks_html(view: PictureView, visual: dict[int, np.ndarray], text: dict[int, int]) -> str:
    counts = ", ".join(
        f"layer {layer}: {int(sinks.sum())} visual, {text[layer]} other" for layer, sinks in visual.items()
    )
    union = np.logical_or.reduce(list(visual.values()))
    if not union.any():
        return (
            '<div class="vg-finding"><strong>VAR: attention sinks.</strong> No token of the picture is a sink, and VAR '
            f"edits a head only if there is one, so it changed nothing. Sinks by layer: {counts}.</div>"
        )
    picture = outline_cells(view.image, as_grid(union, view.grid))
    count = int(union.sum())
    return (
        '<figure class="vg-map"><figcaption>VAR: visual sink tokens</figcaption>'
        f'<img src="{data_uri(picture)}" alt="The picture with {count} crossed-out patches, the visual sink tokens">'
        f"<p>Crossed-out patches draw attention without carrying content; part of it is moved. {counts}.</p></figure>"
    )


def _heads_html(chosen: dict[int, np.ndarray], factor: float) -> str:
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
    return (
        '<figure class="vg-map vg-heads"><figcaption>VHR: heads it strengthened</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width * 1.4:.0f}px" role="img" '
        f'aria-label="Layer by head map: {total} of {heads * len(layers)} heads chosen">{"".join(parts)}</svg>'
        f"<p>Rows are layers, columns heads. Dots: {total} heads whose output changes most without the picture, "
        f"multiplied by {factor:g}.</p></figure>"
    )
