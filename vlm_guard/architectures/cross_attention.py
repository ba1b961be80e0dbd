"""Families that read the picture in cross-attention layers, whose keys are all visual."""

from vlm_guard.architecture_entry import ArchitectureEntry

MLLAMA = ArchitectureEntry(
    family="Llama 3.2 Vision (Mllama)",
    model_types=("mllama",),
    refused="its image is read through cross-attention layers, not as visual tokens in the prompt",
)
