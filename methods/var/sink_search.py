"""Finding a model's attention sinks by what they do, and then the rule that recognises them by what marks them.

VAR (arXiv 2503.03321) takes a token for a sink when one of a few fixed dimensions of its hidden state is massive. Which
dimensions, above which value, and in which layers this tells sinks from other tokens is found here from the model
itself, with the errors of the rule counted. A model may have sinks that no dimension marks, or none at all; then the
reason is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_guard.method import Fact, MeasureCall, layer_ranges
from vlm_guard.methods.var.sink_look import MIN_DRAWN, MIN_TIMES_EVEN, Look, look_at_prompts

# A dimension marks the sinks of a layer when the least of them is this many times above the ordinary tokens, of which
# one in two hundred may be higher; the threshold lies in the middle of that gap.
MIN_GAP = 1.15
ORDINARY_QUANTILE = 0.995
# Published sets have one or two dimensions; more than four would no longer be "a few fixed dimensions".
MAX_DIMENSIONS = 4


@dataclass(frozen=True, kw_only=True)
class SinkRule:
    """How sinks are recognised in a model, and how well.

    Attributes:
        dimensions: of massive activations, ascending.
        threshold: of their normalised activation.
        layers: in which the rule holds, ascending.
        gap: least activation of a sink over the largest of ordinary tokens (99.5th percentile), in these layers.
        sinks: how many sinks there were, over all prompts and these layers; `missed` of them are not recognised.
        missed: see `sinks`.
        ordinary: how many ordinary tokens there were; `mistaken` of them are taken for sinks.
        mistaken: see `ordinary`.
        visual: recognised visual tokens for each picture and layer, mean.
    """

    dimensions: tuple[int, ...]
    threshold: float
    layers: tuple[int, ...]
    gap: float
    sinks: int = 0
    missed: int = 0
    ordinary: int = 0
    mistaken: int = 0
    visual: float = 0.0

    def describe(self) -> str:
        """The counted errors in words."""
        if self.visual:
            pictures = f"{self.visual:.1f} visual tokens of a picture and layer are recognised"
        else:
            pictures = "no visual token is recognised, so VAR, which edits a head only where there is one, edits none"
        return (
            f"{self.missed} of {self.sinks} sinks missed, {self.mistaken} of {self.ordinary} ordinary tokens mistaken, "
            f"sinks {self.gap:.2f} times above the ordinary tokens' 99.5th percentile; {pictures}"
        )


def drawing_layers(looks: Sequence[Look]) -> tuple[int, ...]:
    """The layers in which at least half of the prompts have a token that clearly draws attention."""
    seen: dict[int, list[bool]] = {}
    for look in looks:
        seen.setdefault(look.layer, []).append(bool(look.sinks.any()))
    return tuple(sorted(layer for layer, found in seen.items() if 2 * sum(found) >= len(found)))


def find_rule(looks: Sequence[Look]) -> SinkRule | None:
    """The rule that tells sinks from ordinary tokens in as many layers as possible; None where no dimension does.

    First the dimensions: those that alone tell sinks apart, in at least half as many layers as the best of them does,
    at most four. Then the layers: those where the largest activation among the dimensions tells them apart, without the
    layers that would close the gap for the others. The threshold is the geometric mean of the two sides of the gap.
    """
    layers = drawing_layers(looks)
    of_layer = {layer: [look for look in looks if look.layer == layer] for layer in layers}
    candidates = sorted({dimension for look in looks if look.layer in layers for dimension in look.dimensions})
    marked = {
        dimension: [layer for layer in layers if _is_gap(_sides(of_layer[layer], (dimension,)))]
        for dimension in candidates
    }
    best = max((len(found) for found in marked.values()), default=0)
    if not best:
        return None
    ranked = sorted((dim for dim in marked if 2 * len(marked[dim]) >= best), key=lambda dim: -len(marked[dim]))
    dimensions = tuple(sorted(ranked[:MAX_DIMENSIONS]))
    sides = {layer: _sides(of_layer[layer], dimensions) for layer in layers}
    gaps = {layer: pair for layer, pair in sides.items() if pair is not None and _is_gap(pair)}
    while gaps:
        low, high = min(low for low, _ in gaps.values()), max(high for _, high in gaps.values())
        if _is_gap((low, high)):
            break
        # The layer whose absence leaves the wider gap.
        outer = (min(gaps, key=lambda layer: gaps[layer][0]), max(gaps, key=lambda layer: gaps[layer][1]))
        gaps = max(({k: v for k, v in gaps.items() if k != layer} for layer in outer), key=_gap_of)
    if not gaps:
        return None
    rule = SinkRule(
        dimensions=dimensions,
        threshold=round((low * high) ** 0.5, 3),
        layers=tuple(sorted(gaps)),
        gap=round(low / high, 3),
    )
    return _counted(rule, looks)


def _sides(looks: Sequence[Look], dimensions: Sequence[int]) -> tuple[float, float] | None:
    """The least activation of a layer's sinks, and the 99.5th percentile of its ordinary tokens.

    Prompts in which another dimension is massive were not looked at in this one; the others must be the majority.
    """
    seen = [(look, values) for look in looks if (values := look.of(dimensions)) is not None]
    sinks = [values[look.sinks] for look, values in seen]
    ordinary = [values[look.ordinary] for look, values in seen]
    if 2 * len(seen) < len(looks) or not sum(map(len, sinks)) or not sum(map(len, ordinary)):
        return None
    low = float(torch.cat(sinks).min())
    return low, max(1e-6, float(torch.cat(ordinary).quantile(ORDINARY_QUANTILE)))


def _is_gap(sides: tuple[float, float] | None) -> bool:
    return sides is not None and sides[0] >= MIN_GAP * sides[1]


def _gap_of(gaps: dict[int, tuple[float, float]]) -> float:
    return min(low for low, _ in gaps.values()) / max(high for _, high in gaps.values()) if gaps else 0.0


def _counted(rule: SinkRule, looks: Sequence[Look]) -> SinkRule:
    """The rule with its errors on `looks`."""
    counts = {"sinks": 0, "missed": 0, "ordinary": 0, "mistaken": 0}
    visual, seen = 0, 0
    for look in looks:
        values = look.of(rule.dimensions)
        if look.layer not in rule.layers or values is None:
            continue
        recognised = values > rule.threshold
        counts["sinks"] += int(look.sinks.sum())
        counts["missed"] += int((look.sinks & ~recognised).sum())
        counts["ordinary"] += int(look.ordinary.sum())
        counts["mistaken"] += int((look.ordinary & recognised).sum())
        visual, seen = visual + int((look.visual & recognised).sum()), seen + 1
    return SinkRule(**(vars(rule) | counts | {"visual": round(visual / max(1, seen), 3)}))


def sink_facts(looks: Sequence[Look], prompts: int) -> dict[str, Fact]:
    """The profile facts `sink_dimensions`, `sink_threshold` and `sink_layers` of what was seen in so many prompts.

    Raises:
        ValueError: no token draws attention like a sink, or no dimension marks those that do; with what was measured.
    """
    drawing = drawing_layers(looks)
    most = max((float(look.drawn.max()) for look in looks), default=0.0)
    truth = f"tokens that draw {MIN_DRAWN:.0%} of later rows' attention and {MIN_TIMES_EVEN:g} times an even share"
    if not drawing:
        raise ValueError(
            f"no layer has sinks, {truth} (the most that one draws in any of {prompts} prompts is {most:.0%}): this "
            "model shows no attention sinks, so VAR has nothing to move"
        )
    rule = find_rule(looks)
    if rule is None:
        raise ValueError(
            f"layers {layer_ranges(drawing)} have sinks, {truth} (at most {most:.0%}), but no hidden dimension tells "
            f"them from ordinary tokens: {_nearest(looks, drawing)}. VAR recognises sinks by such a dimension only, so "
            "it cannot work on this model"
        )
    note = f"sinks are {truth}, here in layers {layer_ranges(drawing)}; over {prompts} prompts {rule.describe()}"
    middle = f"the middle of the gap, on a logarithmic scale; {rule.describe()}"
    where = f"the layers in which the dimensions tell sinks apart, out of {layer_ranges(drawing)} that have them"
    return {
        "sink_dimensions": Fact(value=list(rule.dimensions), source="calibrated", note=note),
        "sink_threshold": Fact(value=rule.threshold, source="calibrated", note=middle),
        "sink_layers": Fact(value=layer_ranges(rule.layers), source="calibrated", note=where),
    }


def _nearest(looks: Sequence[Look], layers: Sequence[int]) -> str:
    """The dimension and layer that come nearest to telling sinks apart, in words."""
    best: tuple[float, str] = (0.0, "none holds a twentieth of a sink's squared norm")
    for layer in layers:
        here = [look for look in looks if look.layer == layer]
        for dimension in {dimension for look in here for dimension in look.dimensions}:
            sides = _sides(here, (dimension,))
            if sides is not None and sides[0] / sides[1] > best[0]:
                text = f"nearest is {dimension} in layer {layer}, {sides[0]:.1f} against {sides[1]:.1f}"
                best = (sides[0] / sides[1], f"{text} where {MIN_GAP:g} times as much is wanted")
    return best[1]


def calibrate_sinks(call: MeasureCall) -> dict[str, Fact]:
    """The facts of `sink_facts`, from the prompts of a measurement.

    Raises:
        ValueError: see `sink_facts`.
    """
    looks: Any = look_at_prompts(call.descriptions, call.wrapped, progress=call.progress)
    return sink_facts(looks, len(call.descriptions))
