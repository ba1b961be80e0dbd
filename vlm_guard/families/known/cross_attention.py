"""Families that read the picture in cross-attention layers, whose keys are all visual.

The prompt has one marker per image, so the rows with an image and behind it are known as in other families; among the
keys of self-attention there are no visual tokens. A method says by `Method.cross_attention` whether it means something.
"""

from vlm_guard.families.family import ArchitectureEntry

MLLAMA = ArchitectureEntry(
    family="Llama 3.2 Vision (Mllama)",
    model_types=("mllama",),
    text_models=("mllama_text_model",),
    zoo=("mllama",),
    note="cross-attention: contrast methods, vhr, pai without gain; others are refused",
    cross_attention="cross_attn",
    no_grid="reads tiles of its images in cross-attention layers, without a visual token in the prompt",
    no_tower="its image encoder has two stages, which read all tiles of an image as one sequence",
)
