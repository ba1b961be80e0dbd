"""Random LLaVA models of realistic shapes, for benchmarks: nothing is downloaded, the weights mean nothing.

Time and memory of a decoder depend on its shape, not on its weights, so a random model of the shape of a
published one is measured instead of it.  Every shape here is built as a LLaVA with a Llama decoder and a small
vision tower; details such as biases, query and key norms or multimodal rotary positions of the namesake are left
out, and the vision tower (run once per prompt) is far smaller than a real one.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.initialization import no_init_weights

PATCH_PIXELS = 14
WEIGHT_STD = 0.02
PAD_TOKEN_ID, BOS_TOKEN_ID, FIRST_TEXT_TOKEN_ID = 0, 1, 3


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Shape of a random LLaVA.

    ``hidden`` channels, ``layers``, query ``heads``, ``kv_heads`` and channels per head ``head_dim``,
    ``intermediate`` channels of the MLP, ``vocab`` entries and ``visual_tokens`` per image, a square number.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    visual_tokens: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if math.isqrt(self.visual_tokens) ** 2 != self.visual_tokens:
            raise ValueError(f"visual_tokens must be a square number such as 256 or 576, got {self.visual_tokens}")
        if self.vocab <= FIRST_TEXT_TOKEN_ID + 1:
            raise ValueError(f"vocab must be larger than {FIRST_TEXT_TOKEN_ID + 1}, got {self.vocab}")

    @property
    def image_side(self) -> int:
        """Height and width of an image in pixels."""
        return math.isqrt(self.visual_tokens) * PATCH_PIXELS

    @property
    def decoder_parameters(self) -> int:
        """Number of parameters of the text decoder with embeddings and output layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + 2 * self.vocab * self.hidden + self.hidden

    @property
    def cache_elements_per_token(self) -> int:
        """Elements that one token takes in the key-value cache of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


# Decoder shapes as in the published config.json of the namesake; visual tokens: 336 x 336 pixels for LLaVA 1.5,
# a 896 x 896 image (32 x 32 merged patches) for the Qwen models, one tile for InternVL3.
SHAPES: dict[str, DecoderShape] = {
    "llava-0.3b": DecoderShape(
        hidden=1024,
        layers=18,
        heads=16,
        kv_heads=16,
        head_dim=64,
        intermediate=2816,
        vocab=32064,
        visual_tokens=576,
    ),
    "llava-1.5-7b": DecoderShape(
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=128,
        intermediate=11008,
        vocab=32064,
        visual_tokens=576,
    ),
    "qwen2.5-vl-7b-shape": DecoderShape(
        hidden=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        head_dim=128,
        intermediate=18944,
        vocab=152064,
        visual_tokens=1024,
    ),
    "qwen3-vl-8b-shape": DecoderShape(
        hidden=4096,
        layers=36,
        heads=32,
        kv_heads=8,
        head_dim=128,
        intermediate=12288,
        vocab=151936,
        visual_tokens=1024,
    ),
    "internvl3-8b-shape": DecoderShape(
        hidden=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        head_dim=128,
        intermediate=18944,
        vocab=151674,
        visual_tokens=256,
    ),
}


def named_shape(name: str) -> DecoderShape:
    """The shape called ``name``; ValueError with the known names and the nearest one for any other name."""
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model shape {name!r}, known: {', '.join(SHAPES)}{hint}")
    return SHAPES[name]


def _config(shape: DecoderShape) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=32768,
        bos_token_id=BOS_TOKEN_ID,
        eos_token_id=None,
        pad_token_id=PAD_TOKEN_ID,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=shape.image_side,
        patch_size=PATCH_PIXELS,
    )
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=shape.vocab - 1,
        image_seq_length=shape.visual_tokens,
        vision_feature_layer=-1,
    )


@torch.no_grad()
def _fill(model: nn.Module, device: torch.device, seed: int) -> None:
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 or not (is_norm or name == "bias"):
                parameter.normal_(0.0, WEIGHT_STD, generator=generator)
            else:
                parameter.fill_(1.0 if name == "weight" else 0.0)


def random_llava(
    shape: str | DecoderShape = "llava-0.3b",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """A LLaVA of ``shape`` (a name of ``SHAPES`` or a ``DecoderShape``) with random weights, in eval mode.

    The weights are allocated on ``device`` in ``dtype`` and filled once: normal with standard deviation 0.02,
    norms one, biases zero.  Generation is greedy, never produces the image token and has no end token, so
    ``generate`` runs to ``max_new_tokens``.  While it runs, weight initialisation is switched off for the process:
    do not build other models in other threads meanwhile.  Raises ValueError for an unknown name.
    """
    shape = named_shape(shape) if isinstance(shape, str) else shape
    device = torch.device(device)
    with no_init_weights(), device:
        model = LlavaForConditionalGeneration._from_config(_config(shape), dtype=dtype)
    _fill(model, device, seed)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=BOS_TOKEN_ID,
        eos_token_id=None,
        pad_token_id=PAD_TOKEN_ID,
        suppress_tokens=[model.config.image_token_id],
    )
    return model.eval()
