"""Google's families on Gemma decoders; an image is one block in which every token sees every other."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import grid_of_pixels

GEMMA3 = ArchitectureEntry(
    family="Gemma 3",
    model_types=("gemma3",),
    text_models=("gemma3_text",),
    zoo=("gemma3",),
    note="sliding layers",
    patch_grid=grid_of_pixels,
)
PALIGEMMA = ArchitectureEntry(
    family="PaliGemma 1 and 2",
    model_types=("paligemma",),
    text_models=("gemma", "gemma2"),
    zoo=("paligemma", "paligemma2"),
    patch_grid=grid_of_pixels,
)
