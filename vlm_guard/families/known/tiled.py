"""Families that cut a picture into tiles, or resample it, so that its visual tokens form no single grid."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import RESAMPLED, TILES

IDEFICS2 = ArchitectureEntry(
    family="Idefics2", model_types=("idefics2",), text_models=("mistral",), zoo=("idefics2",), no_grid=RESAMPLED
)
IDEFICS3 = ArchitectureEntry(
    family="Idefics3", model_types=("idefics3",), text_models=("llama",), zoo=("idefics3",), no_grid=TILES
)
SMOLVLM = ArchitectureEntry(
    family="SmolVLM", model_types=("smolvlm",), text_models=("llama",), zoo=("smolvlm",), no_grid=TILES
)
INTERNVL = ArchitectureEntry(
    family="InternVL (HF)", model_types=("internvl",), text_models=("qwen2",), zoo=("internvl",), no_grid=TILES
)
AYA_VISION = ArchitectureEntry(
    family="Aya Vision",
    model_types=("aya_vision",),
    text_models=("cohere2",),
    zoo=("aya_vision",),
    note="sliding layers",
    no_grid=TILES,
)
COHERE2_VISION = ArchitectureEntry(
    family="Cohere2 Vision",
    model_types=("cohere2_vision",),
    text_models=("cohere2",),
    zoo=("cohere2_vision",),
    note="sliding layers",
    no_grid=TILES,
)
LLAMA4 = ArchitectureEntry(
    family="Llama 4",
    model_types=("llama4",),
    text_models=("llama4_text",),
    zoo=("llama4",),
    note="chunked attention",
    no_grid=TILES,
)
MOLMO2 = ArchitectureEntry(
    family="Molmo 2", model_types=("molmo2",), text_models=("molmo2_text",), zoo=("molmo2",), no_grid=TILES
)
OVIS2 = ArchitectureEntry(
    family="Ovis2",
    model_types=("ovis2",),
    text_models=("qwen2",),
    zoo=("ovis2",),
    no_grid=TILES,
    marker_id_fields=("visual_indicator_token_ids",),
)
