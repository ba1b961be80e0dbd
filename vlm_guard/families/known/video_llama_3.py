"""VideoLLaMA 3: packed patches of any picture size, averaged to visual tokens."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import grid_of_merge_sizes

VIDEO_LLAMA_3 = ArchitectureEntry(
    family="VideoLLaMA 3",
    model_types=("video_llama_3",),
    text_models=("qwen2",),
    zoo=("video_llama_3",),
    note="tested with images",
    patch_grid=grid_of_merge_sizes,
    packed_towers=("video_llama_3_vision",),
)
