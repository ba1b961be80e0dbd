"""MiniMax M3: packed patches, merged; most decoder layers choose blocks of keys themselves."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import grid_of_merged_patches

MINIMAX_M3 = ArchitectureEntry(
    family="MiniMax M3",
    model_types=("minimax_m3_vl",),
    text_models=("minimax_m3_vl_text", "minimax_m3_vl_text"),
    zoo=("minimax_m3", "minimax_m3_sparse"),
    note="layers that choose their keys are edited among these; padding shifts their blocks, without a guard too",
    patch_grid=grid_of_merged_patches,
    packed_towers=("minimax_m3_vl_vision",),
)
