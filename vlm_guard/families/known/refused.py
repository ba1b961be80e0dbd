"""Families that cannot be guarded, each with the reason a user is told."""

from vlm_guard.families.family import ArchitectureEntry

_OWN_ATTENTION = "its decoder computes attention itself instead of through transformers' attention interface"
_ENCODER_DECODER = (
    "it is an encoder-decoder: its image is read by an encoder, so the decoder's keys hold no visual tokens"
)
_MASKED = (
    "it says by a position mask beside the prompt which embeddings are its image, not by placeholder ids, and hands "
    "both to the generate of an inner language model"
)

GIT = ArchitectureEntry(family="GIT", model_types=("git",), refused=_OWN_ATTENTION)
BLIP = ArchitectureEntry(family="BLIP", model_types=("blip",), refused=_OWN_ATTENTION)
KOSMOS = ArchitectureEntry(family="Kosmos-2, Kosmos-2.5", model_types=("kosmos-2", "kosmos-2.5"), refused=_MASKED)
IDEFICS1 = ArchitectureEntry(
    family="Idefics (first version)",
    model_types=("idefics",),
    refused="its configuration does not say which token marks an image, so rows with and without one look alike",
)
ENCODER_DECODERS = ArchitectureEntry(
    family="encoder-decoder",
    model_types=("florence2", "pix2struct", "udop", "t5gemma2", "pp_formulanet", "vision-encoder-decoder"),
    refused=_ENCODER_DECODER,
)
EVOLLA = ArchitectureEntry(
    family="Evolla", model_types=("evolla",), refused="it reads proteins instead of pictures, in cross-attention layers"
)
DIFFUSION_GEMMA = ArchitectureEntry(
    family="Diffusion Gemma",
    model_types=("diffusion_gemma",),
    refused="it writes whole blocks of tokens by diffusion instead of one token after the other",
)
DOTS3_NOTE = ArchitectureEntry(
    family="dots.note 3",
    model_types=("dots3_note",),
    refused="its layers have different numbers of query heads, and methods need one number",
)
MISTRAL4 = ArchitectureEntry(
    family="Mistral 4 (text)",
    model_types=("mistral4",),
    refused="it is the text model alone; guard the model that reads pictures and holds it (mistral3)",
)
PI0 = ArchitectureEntry(
    family="Pi0", model_types=("pi0",), refused="it is a robot policy: it produces actions, not an answer in words"
)
