"""LLaVA and its relatives: a vision tower, a projector, and placeholder ids in the prompt of an ordinary decoder."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import TILES, grid_of_pixels, grid_of_sizes

LLAVA = ArchitectureEntry(
    family="LLaVA 1.5, Pixtral (HF)",
    model_types=("llava",),
    text_models=("llama", "mistral", "gpt_oss", "gemma2"),
    zoo=("llava", "llava_pixtral", "llava_gpt_oss", "llava_gemma2"),
    note="learned sink logits and soft caps are kept",
    packed_towers=("pixtral",),
)
LLAVA_NEXT = ArchitectureEntry(
    family="LLaVA-NeXT", model_types=("llava_next",), text_models=("llama",), zoo=("llava_next",), no_grid=TILES
)
LLAVA_ONEVISION = ArchitectureEntry(
    family="LLaVA-OneVision",
    model_types=("llava_onevision",),
    text_models=("qwen2",),
    zoo=("llava_onevision",),
    no_grid=TILES,
)
VIDEO_LLAVA = ArchitectureEntry(
    family="Video-LLaVA",
    model_types=("video_llava",),
    text_models=("llama",),
    zoo=("video_llava",),
    note="tested with images",
)
MISTRAL3 = ArchitectureEntry(
    family="Mistral 3",
    model_types=("mistral3",),
    text_models=("mistral",),
    zoo=("mistral3",),
    patch_grid=grid_of_sizes,
    packed_towers=("pixtral",),
)
DEEPSEEK_VL = ArchitectureEntry(
    family="DeepSeek-VL",
    model_types=("deepseek_vl",),
    text_models=("llama",),
    zoo=("deepseek_vl",),
    patch_grid=grid_of_pixels,
)
JANUS = ArchitectureEntry(
    family="Janus", model_types=("janus",), text_models=("llama",), zoo=("janus",), patch_grid=grid_of_pixels
)
