"""What a method may look at when it prepares."""

from dataclasses import dataclass
from typing import Any

from vlm_guard.families.architecture import Architecture, GenerativeModel
from vlm_guard.families.profiles import Profile


@dataclass(frozen=True, kw_only=True, eq=False)
class GuardTarget:
    """What a method may look at when it prepares: the model, its processor, its shape and its profile."""

    model: GenerativeModel
    processor: Any
    architecture: Architecture
    profile: Profile | None
