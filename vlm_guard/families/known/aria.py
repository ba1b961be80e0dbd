"""Aria: a few queries read the patches of a picture, and the decoder has experts."""

from vlm_guard.families.family import ArchitectureEntry

ARIA = ArchitectureEntry(
    family="Aria",
    model_types=("aria",),
    text_models=("aria_text",),
    zoo=("aria",),
    no_grid="reads its images with queries that belong to no place in the picture",
)
