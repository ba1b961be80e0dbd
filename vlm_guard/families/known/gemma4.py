"""Gemma 4: patches of any grid are pooled; layers differ in head size, and late ones read earlier keys and values."""

from vlm_guard.families.family import ArchitectureEntry

GEMMA4 = ArchitectureEntry(
    family="Gemma 4",
    model_types=("gemma4",),
    text_models=("gemma4_text", "gemma4_text"),
    zoo=("gemma4", "gemma4_shared"),
    note="sliding layers; tested with and without shared keys and values",
    no_grid="gives its patches without the shape of the picture",
)
