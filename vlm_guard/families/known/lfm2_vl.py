"""LFM2-VL: SigLIP 2 patches of any grid; convolutions between the attention layers of the decoder."""

from vlm_guard.families.family import ArchitectureEntry
from vlm_guard.families.image_grids import TILES

LFM2_VL = ArchitectureEntry(
    family="LFM2-VL",
    model_types=("lfm2_vl",),
    text_models=("lfm2",),
    zoo=("lfm2_vl",),
    note="only its attention layers are edited",
    no_grid=TILES,
)
