"""Whether every edit was asked for while a prompt was read: one that nobody asks for acts nowhere, without a word."""

from collections.abc import Iterable, Sequence

from torch import nn

from vlm_guard.method.attention_calls import BoundMethod, LayerSlot
from vlm_guard.method.base import Sign
from vlm_guard.method.state import GenerationState
from vlm_guard.method.target import GuardTarget
from vlm_guard.runtime.hidden_edits import edited_parts
from vlm_guard.runtime.reading import Findings, methods_at_tower
from vlm_guard.runtime.vision_hooks import tower_modules

_ADVICE = (
    "would not act there. The model computes this another way than when it was wrapped; remove the guard, undo that "
    "change, and wrap the model again"
)


def hooked_modules(target: GuardTarget, methods: Iterable[BoundMethod]) -> list[nn.Module]:
    """The modules with hooks of the methods, in the decoder's layers and in the vision tower."""
    found: list[nn.Module] = []
    for bound in methods:
        found += [part.module for part in edited_parts(target, bound)]
        found += tower_modules(target, bound)
    return found


class Coverage:
    """What must have happened when a prompt has been read.

    Args:
        target: the model.
        methods: the methods of the guard.
    """

    def __init__(self, target: GuardTarget, methods: Sequence[BoundMethod]) -> None:
        self._names = "+".join(bound.method.name for bound in methods)
        self._layers: dict[Sign, frozenset[int]] = {"positive": frozenset(), "negative": frozenset()}
        self._parts: dict[Sign, set[tuple[str, int, str]]] = {"positive": set(), "negative": set()}
        self._at_tower: dict[Sign, set[str]] = {"positive": set(), "negative": set()}
        for bound in methods:
            name, side = bound.method.name, bound.method.edited_branch
            self._parts[side] |= {(name, part.layer, part.part) for part in edited_parts(target, bound)}
            if bound.method.vision_plan(target, bound.prepared) is not None:
                self._at_tower[side].add(name)

    def expect_layers(self, slots: Iterable[LayerSlot]) -> None:
        """These layers' attention is edited from now on."""
        slots = list(slots)
        sides: tuple[Sign, Sign] = ("positive", "negative")
        self._layers = {side: frozenset(slot.layer for slot in slots if slot.of_side(side)) for side in sides}

    def check(self, state: GenerationState, findings: Findings, count: int) -> None:
        """See that all of it happened.

        Args:
            state: the generation, whose pass has ended.
            findings: of the generation.
            count: how many tokens the pass has read.

        Raises:
            RuntimeError: an edit did not run; the message says where.
        """
        layers = self._layers[state.side] - state.attended
        if layers:
            places = f"decoder layers {', '.join(map(str, sorted(layers)))}"
            raise RuntimeError(f"the edits of {places} did not run while the prompt was read: {self._names} {_ADVICE}")
        parts = self._parts[state.side] - state.edited
        if parts:
            name, layer, part = min(parts)
            raise RuntimeError(
                f"the edit of the {part} output of decoder layer {layer} did not run while the prompt was read: "
                f"{name} {_ADVICE}"
            )
        missing = self._at_tower[state.side]
        if missing and state.visual is not None and bool(state.visual[:, state.offset : state.offset + count].any()):
            missing = missing - methods_at_tower(findings)
            if missing:
                raise RuntimeError(
                    f"the pictures of this prompt did not pass the vision tower where {' and '.join(sorted(missing))} "
                    "acts: give the model pixel values, not ready image features or a picture of another kind (a "
                    "video), or remove the guard for this call"
                )
