"""Letting methods look into the vision tower and replace what its layers compute.

Only what a method asks for is computed: one softmax row of a chosen layer, never a whole map. The tower's own attention
runs untouched. Images that a method or a contrast branch encodes for itself are left alone.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_guard.families.layer_parts import LayerPart, replace_output, tower_parts
from vlm_guard.families.vision_tower import VisionTower
from vlm_guard.method.attention_calls import WATCHER, BoundMethod
from vlm_guard.method.vision_calls import VisionEditCall, VisionPassCall, VisionPlan, VisionRowCall
from vlm_guard.runtime.attention_switch import restore_attention, switch_modules
from vlm_guard.runtime.installation import put_on

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.target import GuardTarget

Undo = Callable[[], Any]
SeeRow = Callable[[int, Tensor], None]


def install_vision(guard: "Guard", bound: BoundMethod) -> list[Undo]:
    """Hook a method to the vision tower, as its plan says. Of several methods the last must come first.

    Returns:
        What undoes it.
    """
    plan = bound.method.vision_plan(guard.target, bound.prepared)
    if plan is None:
        return []
    return _VisionHooks(guard, bound, plan).install()


def tower_modules(target: "GuardTarget", bound: BoundMethod) -> list[nn.Module]:
    """The modules of the vision tower that a method is hooked to."""
    plan = bound.method.vision_plan(target, bound.prepared)
    if plan is None:
        return []
    parts = tower_parts(plan.tower, plan.edited, bound.method.name)
    watched = [plan.tower.attentions[layer] for layer in plan.watched]
    return [plan.tower.module, *watched, *(item.module for item in parts)]


class _VisionHooks:
    """One method at the vision tower."""

    def __init__(self, guard: "Guard", bound: BoundMethod, plan: VisionPlan) -> None:
        self.guard, self.bound, self.plan = guard, bound, plan
        self.memory = SimpleNamespace()

    def install(self) -> list[Undo]:
        tower, name = self.plan.tower, self.bound.method.name
        undo = [tower.module.register_forward_pre_hook(self.begin, with_kwargs=True).remove]
        undo += watch_rows(tower, self.plan.watched, self.plan.mean_query, self.see)
        parts = tower_parts(tower, self.plan.edited, name)
        # In front of the hooks with which transformers records hidden states, of which many models take one.
        undo += [item.module.register_forward_hook(partial(self.edit, item), prepend=True).remove for item in parts]
        return undo

    @property
    def common(self) -> dict[str, Any]:
        """What every call of this pass has."""
        found = self.guard.findings(self.bound.method.name)
        return {"plan": self.plan, "memory": self.memory, "found": found, "prepared": self.bound.prepared}

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        reading = self.guard.reading
        if reading.is_probing:
            return
        self.memory = SimpleNamespace()
        reading.saw_tower(self.bound.method.name)

        def encode(*others: Any, **settings: Any) -> Any:
            with reading.probing():
                return module.forward(*others, **settings)

        self.bound.method.begin_vision(VisionPassCall(args=args, kwargs=kwargs, encode=encode, **self.common))

    def see(self, layer: int, weights: Tensor) -> None:
        if not self.guard.reading.is_probing:
            self.bound.method.observe_vision(VisionRowCall(layer=layer, weights=weights, **self.common))

    def edit(self, part: LayerPart, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.guard.reading.is_probing:
            return output

        def edited(hidden: Tensor) -> Tensor | None:
            call = VisionEditCall(layer=part.layer, part=part.part, hidden=hidden, **self.common)
            return self.bound.method.edit_vision(call)

        return replace_output(output, edited)


def row_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """[N, H, T] float32 softmax weights of one query row.

    Args:
        query: [N, H, 1, D].
        key: [N, H, T, D].
        scaling: factor of q.k.
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scaling
    return scores.softmax(-1)[:, :, 0]


def watch_rows(tower: VisionTower, layers: tuple[int, ...], mean_query: bool, see: SeeRow) -> list[Undo]:
    """Show `see(layer, weights)` one attention row per image [N, H, T] of the given layers, at every pass.

    Args:
        tower: the vision tower.
        layers: indices of its layers.
        mean_query: the row of the mean query of all tokens, instead of the row of token 0.
        see: gets the layer and the weights.

    Returns:
        What undoes it.
    """
    modules = [tower.attentions[layer] for layer in layers]
    if not modules:
        return []
    configs = switch_modules(modules)
    undo: list[Undo] = [lambda: restore_attention(configs)]
    for layer, module in zip(layers, modules):
        undo.append(put_on(module, WATCHER, partial(_see_row, layer, mean_query, see)))
    return undo


def _see_row(layer: int, mean_query: bool, see: SeeRow, query: Tensor, key: Tensor, scaling: float | None) -> None:
    with torch.no_grad():
        row = query.mean(2, keepdim=True) if mean_query else query[:, :, :1]
        see(layer, row_attention(row, key, query.shape[-1] ** -0.5 if scaling is None else scaling))
