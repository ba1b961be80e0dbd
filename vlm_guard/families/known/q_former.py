"""Q-former families: a few queries read the picture, and an inner language model generates from embeddings.

The placeholders of `input_ids` stand for the queries, so these are the visual tokens. T5 as a text model is refused, as
every encoder-decoder is.
"""

from vlm_guard.families.family import ArchitectureEntry

_QUERIES = "reads its images with queries that belong to no place in the picture"
_NOTE = "visual tokens are the Q-former's queries; T5 text models are refused (encoder-decoder)"

BLIP2 = ArchitectureEntry(
    family="BLIP-2",
    model_types=("blip-2",),
    text_models=("opt",),
    zoo=("blip_2",),
    note=_NOTE,
    generator="language_model",
    no_grid=_QUERIES,
)
INSTRUCTBLIP = ArchitectureEntry(
    family="InstructBLIP",
    model_types=("instructblip",),
    text_models=("llama",),
    zoo=("instructblip",),
    note=_NOTE,
    generator="language_model",
    no_grid=_QUERIES,
)
INSTRUCTBLIP_VIDEO = ArchitectureEntry(
    family="InstructBLIP for video",
    model_types=("instructblipvideo",),
    text_models=("llama",),
    zoo=("instructblip_video",),
    note=_NOTE,
    generator="language_model",
    no_grid=_QUERIES,
)
