"""What methods found out about a picture while they guarded an answer, for those that keep it in their memory."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from vlm_guard.guard import Guard
from vlm_guard.kernels.attention_edit import TEXT_SINK, VISUAL_SINK
from vlm_guard.method.attention_calls import BoundMethod


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """Facts to draw; what a method does not keep is absent.

    Attributes:
        visual_sinks: by layer [visual tokens] bool, VAR's visual sink tokens.
        text_sinks: by layer, how many tokens outside the picture VAR takes for sinks.
        chosen_heads: by layer [heads] bool, the heads VHR strengthens.
        head_factor: by how much.
        contrast: [rows, columns] CARVE's contrast of the question's attention with a general description's.
        refined: the picture CARVE made of what stands out.
        kept_share: the share of the original picture that is left in it.
    """

    visual_sinks: dict[int, np.ndarray] = field(default_factory=dict)
    text_sinks: dict[int, int] = field(default_factory=dict)
    chosen_heads: dict[int, np.ndarray] = field(default_factory=dict)
    head_factor: float = 1.0
    contrast: np.ndarray | None = None
    refined: Image.Image | None = None
    kept_share: float = 0.0


def findings_of(guard: Guard) -> Findings:
    """What the methods of a guard kept of its last generation (first row of the batch)."""
    names = {bound.method.name: bound for bound in guard.methods}
    found: dict[str, Any] = {}
    if guard.state is None:
        return Findings()
    if "var" in names:
        found["visual_sinks"], found["text_sinks"] = _sinks(guard, names["var"])
    if "vhr" in names:
        found["chosen_heads"] = _heads(guard)
        found["head_factor"] = float(names["vhr"].method.strength)
    images = getattr(guard.findings("carve"), "images", None) if "carve" in names else None
    if images:
        found["contrast"], found["refined"] = images[0].contrast, images[0].refined
        found["kept_share"] = float(images[0].kept.mean())
    return Findings(**found)


def _sinks(guard: Guard, bound: BoundMethod) -> tuple[dict[int, np.ndarray], dict[int, int]]:
    visual = guard.state.visual[0].cpu()
    of_picture: dict[int, np.ndarray] = {}
    others: dict[int, int] = {}
    for layer in sorted(bound.layers):
        edit = getattr(guard.state.memory("var", layer), "edit", None)
        if edit is None or edit.segments is None:
            continue
        kinds = edit.segments.ids[0].cpu()
        of_picture[layer] = (kinds[visual[: len(kinds)]] == VISUAL_SINK).numpy()
        others[layer] = int((kinds == TEXT_SINK).sum())
    return of_picture, others


def _heads(guard: Guard) -> dict[int, np.ndarray]:
    scoring = getattr(guard.state.memory("vhr", -1), "scoring", None)
    scales = getattr(scoring, "scales", {})
    return {layer: (scale[0].cpu() != 1).numpy() for layer, scale in sorted(scales.items())}
