"""ViP-LLaVA: LLaVA with features of several vision layers."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import grid_of_pixels

VIP_LLAVA = ArchitectureEntry(
    family="ViP-LLaVA",
    model_types=("vipllava",),
    text_models=("llama",),
    zoo=("vip_llava",),
    patch_grid=grid_of_pixels,
)
