"""What a method sees of the vision tower, and what it may replace there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from vlm_guard.families.layer_parts import Part
from vlm_guard.families.vision_tower import VisionTower


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionPlan:
    """Where a method acts in the vision tower; see `Method.vision_plan`.

    Attributes:
        tower: the tower, `describe_vision_tower(target.model, name)`.
        watched: its layers of which one attention row is shown to `observe_vision`.
        mean_query: whether that is the row of the mean query of all tokens, instead of the row of token 0.
        edited: its layers whose parts are handed to `edit_vision`.
    """

    tower: VisionTower
    watched: tuple[int, ...] = ()
    mean_query: bool = False
    edited: Mapping[Part, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionCall:
    """What all hooks at the vision tower see.

    Attributes:
        plan: where the method acts.
        memory: what the method keeps during this pass of the tower.
        found: what it keeps of this `generate` call, `guard.findings(name)`.
        prepared: what `Method.prepare` returned.
    """

    plan: VisionPlan
    memory: SimpleNamespace
    found: SimpleNamespace
    prepared: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionPassCall(VisionCall):
    """What `Method.begin_vision` sees: images are about to enter the tower.

    Attributes:
        args: positional arguments of the tower. kwargs: the others.
        encode: runs the tower's forward on other arguments, without any method's hooks at it; with gradients where
            they are enabled.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    encode: Callable[..., Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionRowCall(VisionCall):
    """What `Method.observe_vision` sees.

    Attributes:
        layer: index of the tower's layer.
        weights: [N, H, T] float32 attention of one row of each of N images.
    """

    layer: int
    weights: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionEditCall(VisionCall):
    """What `Method.edit_vision` sees.

    Attributes:
        layer: index of the tower's layer.
        part: "attention" or "mlp", what these add to the residual stream, or "residual", the stream behind the layer.
        hidden: [N, T, C] of N images.
    """

    layer: int
    part: Part
    hidden: Tensor
