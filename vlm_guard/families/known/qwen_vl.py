"""Qwen-VL and relatives: packed patches of any picture size, merged into visual tokens, and three-part positions."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import grid_of_merged_patches

QWEN2_VL = ArchitectureEntry(
    family="Qwen2-VL",
    model_types=("qwen2_vl",),
    text_models=("qwen2_vl_text",),
    zoo=("qwen2_vl",),
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen2_vl_vision",),
)
QWEN2_5_VL = ArchitectureEntry(
    family="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    text_models=("qwen2_5_vl_text",),
    zoo=("qwen2_5_vl",),
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen2_5_vl_vision",),
)
QWEN3_VL = ArchitectureEntry(
    family="Qwen3-VL",
    model_types=("qwen3_vl",),
    text_models=("qwen3_vl_text",),
    zoo=("qwen3_vl",),
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen3_vl_vision",),
)
QWEN3_VL_MOE = ArchitectureEntry(
    family="Qwen3-VL MoE",
    model_types=("qwen3_vl_moe",),
    text_models=("qwen3_vl_moe_text",),
    zoo=("qwen3_vl_moe",),
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen3_vl_moe_vision",),
)
QWEN3_5 = ArchitectureEntry(
    family="Qwen3.5",
    model_types=("qwen3_5",),
    text_models=("qwen3_5_text",),
    zoo=("qwen3_5",),
    note="only its full-attention layers are edited",
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen3_5_vision",),
)
QWEN3_5_MOE = ArchitectureEntry(
    family="Qwen3.5 MoE",
    model_types=("qwen3_5_moe",),
    text_models=("qwen3_5_moe_text",),
    zoo=("qwen3_5_moe",),
    note="only its full-attention layers are edited",
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen3_5_moe_vision",),
)
QWEN2_5_OMNI = ArchitectureEntry(
    family="Qwen2.5-Omni (thinker)",
    model_types=("qwen2_5_omni_thinker",),
    text_models=("qwen2_5_omni_text",),
    zoo=("qwen2_5_omni_thinker",),
    note="audio tokens count as text; not tested with audio",
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen2_5_omni_vision_encoder",),
)
QWEN3_OMNI = ArchitectureEntry(
    family="Qwen3-Omni (thinker)",
    model_types=("qwen3_omni_moe_thinker",),
    text_models=("qwen3_omni_moe_text",),
    zoo=("qwen3_omni_thinker",),
    note="audio tokens count as text; not tested with audio",
    patch_grid=grid_of_merged_patches,
    packed_towers=("qwen3_omni_moe_vision_encoder",),
)
GLM4V = ArchitectureEntry(
    family="GLM-4V",
    model_types=("glm4v",),
    text_models=("glm4v_text",),
    zoo=("glm4v",),
    patch_grid=grid_of_merged_patches,
    packed_towers=("glm4v_vision",),
)
GLM46V = ArchitectureEntry(
    family="GLM-4.6V",
    model_types=("glm46v",),
    text_models=("glm4v_text",),
    zoo=("glm46v",),
    patch_grid=grid_of_merged_patches,
    packed_towers=("glm4v_vision",),
)
GLM4V_MOE = ArchitectureEntry(
    family="GLM-4.5V (GLM-4V MoE)",
    model_types=("glm4v_moe",),
    text_models=("glm4v_moe_text",),
    zoo=("glm4v_moe",),
    patch_grid=grid_of_merged_patches,
    packed_towers=("glm4v_moe_vision",),
)
