"""What a method may look at when it prepares."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_guard.families.architecture import Architecture, GenerativeModel
from vlm_guard.families.profiles import Profile

if TYPE_CHECKING:
    from vlm_guard.method.split_heads import HeadSplit


@dataclass(frozen=True, kw_only=True, eq=False)
class GuardTarget:
    """What a method may look at when it prepares: the model, its processor, its shape and its profile.

    Attributes:
        split: how an engine other than transformers spreads the heads over processes, or None.
    """

    model: GenerativeModel
    processor: Any
    architecture: Architecture
    profile: Profile | None
    split: "HeadSplit | None" = None
