"""What methods found out about a picture while they guarded an answer, for those that keep it in their memory."""

from dataclasses import dataclass, field

import numpy as np

from vlm_guard.guard import Guard

TEXT_SINK, VISUAL_SINK = 1, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """Facts to draw; what a method does not keep is absent.

    Attributes:
        visual_sinks: by layer [visual tokens] bool, VAR's visual sink tokens.
        text_sinks: by layer, how many tokens outside the picture VAR takes for sinks.
    """

    visual_sinks: dict[int, np.ndarray] = field(default_factory=dict)
    text_sinks: dict[int, int] = field(default_factory=dict)


def findings_of(guard: Guard) -> Findings:
    """What the methods of a guard kept of its last generation (first row of the batch)."""
    visual_sinks: dict[int, np.ndarray] = {}
    text_sinks: dict[int, int] = {}
    if guard.state is None:
        return Findings()
    visual = guard.state.visual[0].cpu()
    for bound in guard.methods:
        if bound.method.name != "var":
            continue
        for layer in sorted(bound.layers):
            edit = getattr(guard.state.memory("var", layer), "edit", None)
            if edit is None or edit.segments is None:
                continue
            kinds = edit.segments.ids[0].cpu()
            kinds = kinds.reshape(-1, kinds.shape[-1])[0]
            visual_sinks[layer] = (kinds[visual[: len(kinds)]] == VISUAL_SINK).numpy()
            text_sinks[layer] = int((kinds == TEXT_SINK).sum())
    return Findings(visual_sinks=visual_sinks, text_sinks=text_sinks)
