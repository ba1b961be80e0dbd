"""MiniCPM-V 4.6: packed patches merged in two stages, and a Qwen3.5 decoder."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import TILES

MINICPM_V = ArchitectureEntry(
    family="MiniCPM-V 4.6",
    model_types=("minicpmv4_6",),
    text_models=("qwen3_5_text",),
    zoo=("minicpm_v",),
    note="only its full-attention layers are edited",
    no_grid=TILES,
    packed_towers=("minicpmv4_6_vision",),
)
