"""LightOnOCR: a Pixtral tower whose patches are merged, and a Qwen3 decoder."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import grid_of_sizes

LIGHTON_OCR = ArchitectureEntry(
    family="LightOnOCR",
    model_types=("lighton_ocr",),
    text_models=("qwen3",),
    zoo=("lighton_ocr",),
    patch_grid=grid_of_sizes,
    packed_towers=("pixtral",),
)
