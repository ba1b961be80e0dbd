"""Q-former families: a few queries read the picture, and an inner language model generates from embeddings."""

from vlm_guard.architecture_entry import ArchitectureEntry

_EMBEDDINGS = (
    "its generate hands embeddings to an inner language model, so the guard cannot see which tokens are visual"
)

BLIP2 = ArchitectureEntry(family="BLIP-2", model_types=("blip-2",), refused=_EMBEDDINGS)
INSTRUCTBLIP = ArchitectureEntry(
    family="InstructBLIP", model_types=("instructblip", "instructblipvideo"), refused=_EMBEDDINGS
)
