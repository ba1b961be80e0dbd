"""The built-in model's architecture, its first weights, and its processor: a plain LLaVA in Hugging Face's classes."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.modeling_clip import CLIPAttention

from vlm_guard.eval.scenes.render import GRID, SIZE
from vlm_guard.eval.training.tokenizer import BOS, EOS, IMAGE, PAD, VOCABULARY

PATCHES = GRID * GRID
WIDTH = 192

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ '\\n' + message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{{ '\\n' }}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% elif message['role'] == 'assistant' %} ASSISTANT: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}</s>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def configuration() -> LlavaConfig:
    """A 5-layer CLIP vision tower (64 patches of 12 pixels) and a 6-layer Llama with grouped keys and values."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=SIZE // GRID,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


def sine_cosine_positions(grid: int, width: int) -> torch.Tensor:
    """Fixed position vectors of shape (grid * grid, width): sines and cosines of row and column."""
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


@torch.no_grad()
def _initialise_vision(tower: nn.Module) -> None:
    """Positions at the patches' own scale and queries that start equal to keys, so attention begins local.

    A transformer of this size learns to see far slower from CLIP's own first weights. The idea of starting with
    query = key is from Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (2023).
    """
    for name, weight in tower.named_parameters():
        if "position_embedding" in name:
            weight.zero_()
            weight[1:] = sine_cosine_positions(GRID, WIDTH)
        elif "patch_embedding" in name:
            nn.init.normal_(weight, std=0.6 * (weight[0].numel()) ** -0.5)
        elif weight.dim() >= 2:
            nn.init.normal_(weight, std=0.02 if "out_proj" in name or "fc2" in name else 0.03)
    for module in tower.modules():
        if isinstance(module, CLIPAttention):
            shared = torch.randn(WIDTH, WIDTH) * 0.81 * WIDTH**-0.5
            module.q_proj.weight.copy_(shared + 0.01 * torch.randn(WIDTH, WIDTH))
            module.k_proj.weight.copy_(shared + 0.01 * torch.randn(WIDTH, WIDTH))


@torch.no_grad()
def new_model(seed: int) -> LlavaForConditionalGeneration:
    """An untrained model, float32."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(configuration())
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    for name, weight in model.model.language_model.named_parameters():
        if "embed_tokens" in name:
            nn.init.normal_(weight, std=0.05)
        elif weight.dim() >= 2:
            last = "o_proj" in name or "down_proj" in name
            nn.init.normal_(weight, std=0.03 / (2 * layers) ** 0.5 if last else 0.03)
    _initialise_vision(model.model.vision_tower)
    for name, weight in model.model.multi_modal_projector.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        else:
            weight.zero_()
    model.generation_config.update(
        max_new_tokens=128, do_sample=False, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD
    )
    return model


def new_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor; its image part needs Pillow and NumPy only, and leaves 96 x 96 pictures as they are."""
    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_center_crop=False
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=SIZE // GRID,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 96, 96, 3) to the float32 (B, 3, 96, 96) that the processor makes of the same pictures."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=pixels.device).view(1, 3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=pixels.device).view(1, 3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / deviation


def visual_features(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """Projected visual tokens (B, 64, 192), as LLaVA inserts them into the text."""
    hidden = model.model.vision_tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
    return model.model.multi_modal_projector(hidden)


MATCHING_LAYERS = (1, 2)
MATCHING_SHARE = 2
"""One of this many key-value heads of a matching layer looks for patches that show the current word."""


@torch.no_grad()
def start_matching(model: LlavaForConditionalGeneration, words: torch.Tensor, seed: int, strength: float = 2.2) -> None:
    """Let some heads begin by attending from a category's word to the patches that show it.

    After the vision stage a patch that shows a dog lies near the word "dog" in embedding space, but nothing makes a
    query of "dog" meet the key of such a patch: from random weights that takes a long time to be found. Here queries
    and keys of some heads project on the same directions of the space that the categories' words span. Only the slowly
    turning half of the rotary dimensions is used, in which a match survives any distance within a prompt.

    Args:
        model: The model at the start of the joint stage.
        words: int64 (80,) one token per category.
        seed: Seed of the directions.
        strength: Scale of the projections; with 2.2 a present category's word gives about twice as much attention to
            the image in these heads as an absent one's (tried on a model of 17 000 views).
    """
    text = model.config.get_text_config(decoder=True)
    heads, size = text.num_key_value_heads, text.head_dim
    queries_per_key = text.num_attention_heads // heads
    half = size // 2
    slow = [dim for dim in range(size) if dim % half >= half * 7 // 16]
    fast = [dim for dim in range(size) if dim not in slow]
    centred = model.get_input_embeddings().get_parameter("weight")[words].float()
    centred = centred - centred.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[: len(words) - 1].cpu()
    generator = torch.Generator().manual_seed(seed)
    for layer in MATCHING_LAYERS:
        block = model.model.language_model.layers[layer]
        turned = torch.linalg.qr(torch.randn(len(basis), len(basis), generator=generator)).Q @ basis
        scale = strength / block.input_layernorm.weight.detach().cpu()
        for place, head in enumerate(range(heads - heads // MATCHING_SHARE, heads)):
            directions = (turned[place * len(slow) : (place + 1) * len(slow)] * scale).to(words.device)
            key_rows = torch.tensor([head * size + dim for dim in slow], device=words.device)
            block.self_attn.k_proj.weight[key_rows] = directions
            for query in range(head * queries_per_key, (head + 1) * queries_per_key):
                rows = torch.tensor([query * size + dim for dim in slow], device=words.device)
                block.self_attn.q_proj.weight[rows] = directions
                block.self_attn.q_proj.weight[[query * size + dim for dim in fast]] *= 0.1
