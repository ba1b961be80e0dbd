"""Every method with options that make it act on the tiny random models, for the invariants all methods share."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedConfig

from vlm_guard.families.family import ArchitectureEntry, entry_of
from vlm_guard.families.packed_vectors import pack_vectors
from vlm_guard.method.registry import method_names
from zoo import FAMILIES as FAMILIES_OF_ZOO
from zoo import families
from zoo.prompts import BOS, PAD
from zoo.tiny_processor import PROCESSORS, tiny_processor

# Without a family that is refused, and one without visual tokens in its prompt (tests/test_cross_attention.py).
FAMILIES = [name for name in families() if name not in {"git", "mllama"}]

WORD_PROCESSOR = {"icd", "lqcd", "ritual"}


class WordTokenizer:
    """As much of a tokenizer as the methods that edit text need: its words are the ids themselves."""

    all_special_ids = list(range(10))
    bos_token_id = BOS
    pad_token_id = PAD

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The words as numbers."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **settings: Any) -> str:
        """The numbers as words."""
        return " ".join(map(str, ids))


class PixelScale:
    """As much of an image processor as the methods that change pictures need."""

    do_normalize, do_rescale = True, True
    image_mean, image_std = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


class WordProcessor:
    """A processor around them."""

    tokenizer = WordTokenizer()
    image_processor = PixelScale()


def without_the_last_but_one(text: str) -> str:
    """A question of at least two words without the last but one, which stands for a leading word."""
    words = text.split()
    return " ".join(words if len(words) < 2 else [*words[:-2], words[-1]])


def processor(name: str, family: str) -> Any:
    """The processor that `name` is given on the zoo's `family`; None where it needs none."""
    if name == "carve":
        return tiny_processor(family)
    return WordProcessor() if name in WORD_PROCESSOR else None


# Random models have no real sinks: low thresholds plant some, so that the edit is really exercised.
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "var": {
        "sink_dimensions": "0,5,9",
        "sink_threshold": 1.2,
        "min_visual_mass": 0.01,
        "min_content_share": 0.01,
        "layers": "all",
    },
    "zerotuning": {"factor": 0.3},
    # Milder than its default: the stock qwen3_5 rounds its linear attention coarsely, and a strong edit amplifies that.
    "act": {"threshold": 0.05, "layers": "all", "move_fraction": 0.3},
    "paint": {"layers": "all", "local_gain": 2.0},
    "pai": {"layers": "all"},
    "vhr": {"layers": "all"},
    "uncertainty": {
        "pixel_std": "0.27,0.26,0.28",
        "iterations": 2,
        "threshold": 0.3,
        "layers": "0",
        "probe_layers": "0-1",
    },
    "gift": {"content_words": "all"},
    "carve": {"layers": "all"},
    "icd": {"text": "151 152 153 154 155 156", "place": "start"},
    "m3id": {"forgetting": 0.5},
    "lqcd": {"neutraliser": without_the_last_but_one},
    "avisc": {"plausibility": 0.0, "threshold": 0.0},
    "only": {"plausibility": 0.0, "threshold": 0.0},
    "revisit": {"strength": 0.5, "plausibility": 1e-30, "most": 1000000},
    "vista": {"strength": 0.5, "late_layers": "last:1"},
    "sid": {"plausibility": 0.0, "keep": 0.3, "layers": "1-"},
    # Keep half of the few heads of a tiny model.
    "spin": {"keep": 0.5},
    "hgai": {"layers": "all", "strength": 0.2},  # milder than its default, as ACT, for the stock qwen3_5
    "vaf": {"layers": "all"},
    # Five tokens are few for its growing share.
    "flb": {"strength": 2.0, "rate": 0.5},
}
# Methods that look at many rows of a prompt, which layers that share keys and values do not compute.
WHOLE_PROMPT = {"act", "vhr"}
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

# Methods that act inside the model and whose whole effect is seen in what is generated: two cases in place of six.
SEEN_IN_ANSWERS = {"only", "revisit", "vista"}

# Vision towers whose first token is a class token.
CLASS_TOKEN_TOWERS = {"clip_vision_model", "blip_2_vision_model", "instructblip_vision_model"}

# Vision towers that are given patches instead of pictures.
PATCH_TOWERS = {"gemma4_vision", "siglip2_vision_model", "molmo2_vision"}

# Families in which a method's options above cannot be met, for a reason that no fact of the family tells.
REFUSED_FAMILIES: dict[str, set[str]] = {
    # The feed-forward networks of OPT are no modules.
    "iri": {"blip_2"},
    "only": {"blip_2"},
    "vista": {"blip_2"},
    "vti": {"blip_2"},
    # Pictures that come in as patches in an order that it does not know.
    "ritual": {"fuyu", "gemma4", "gemma4_shared", "lfm2_vl", "minicpm_v", "molmo2"},
}


@cache
def config_of(family: str) -> PreTrainedConfig:
    """The configuration of the zoo's `family`."""
    families()
    return FAMILIES_OF_ZOO[family].model()[1]


def entry_of_zoo(family: str) -> ArchitectureEntry:
    """What the project says of the zoo's `family`."""
    return entry_of(config_of(family).model_type)


def tower_type(family: str) -> str:
    """`model_type` of the vision tower; empty for a family without one."""
    return getattr(getattr(config_of(family), "vision_config", None), "model_type", "")


def attention_layers(family: str) -> list[int]:
    """The decoder layers with attention; in some families others are convolutions or linear."""
    text = config_of(family).get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return [index for index, kind in enumerate(kinds) if kind in ATTENTION_LAYERS]


def vti_directions(family: str) -> dict[str, Any]:
    """Directions along one axis for decoder and, where VTI can work in it, tower of the zoo's `family`."""
    text, tower = config_of(family).get_text_config(decoder=True), getattr(config_of(family), "vision_config", None)
    entry = entry_of_zoo(family)
    found = {"text_direction": pack_vectors(torch.eye(text.num_hidden_layers, text.hidden_size)), "text_strength": 3.0}
    if entry.no_tower or tower_type(family) in entry.packed_towers:
        return found | {"vision_strength": 0.0}
    return found | {"vision_direction": pack_vectors(torch.eye(tower.num_hidden_layers, tower.hidden_size))}


def names() -> list[str]:
    """The methods under test."""
    return method_names()


def options(name: str, family: str = "llava") -> dict[str, Any]:
    """Options that make `name` act on the tiny random model of `family`."""
    if name == "pai" and entry_of(config_of(family).model_type).generator:
        # `model(...)` of a family that generates from embeddings takes no contrast: it is refused, as other tests show.
        return OPTIONS["pai"] | {"guidance": 1.0}
    if name == "iri":
        depth = config_of(family).get_text_config(decoder=True).num_hidden_layers
        rates = ",".join(["0.9", "0.2", "0.5", "0.7"][:depth])
        return {"attention_rates": rates, "mlp_rates": rates, "attention_strength": 1.0}
    if name == "vti":
        return vti_directions(family)
    if name == "revisit" and getattr(config_of(family).get_text_config(decoder=True), "num_kv_shared_layers", 0):
        return OPTIONS[name] | {"layers": "0-1"}
    shared = getattr(config_of(family).get_text_config(decoder=True), "num_kv_shared_layers", 0)
    if name in WHOLE_PROMPT and shared:
        return OPTIONS[name] | {"layers": f"0-{attention_layers(family)[-1] - shared}"}
    if name == "sid":
        return OPTIONS[name] | {"layers": f"{attention_layers(family)[1]}-"}
    if name == "gift":
        first = attention_layers(family)[0]
        return OPTIONS[name] | {"saliency_layer": str(first), "layers": f"{first + 1}-"}
    return OPTIONS.get(name, {})


def supports(name: str, family: str) -> bool:
    """Whether method `name` works on the zoo's `family`."""
    entry = entry_of_zoo(family)
    if name == "paint":
        return tower_type(family) in CLASS_TOKEN_TOWERS and not entry.no_grid
    if name == "carve":
        return family in PROCESSORS and not entry.no_grid
    if name == "opera":
        return (
            False  # it answers by a search without logits of its own, in `generate` alone: tests/methods/test_opera.py
        )
    if name == "uncertainty":
        return not entry.no_tower and tower_type(family) not in {*entry.packed_towers, *PATCH_TOWERS}
    return family not in REFUSED_FAMILIES.get(name, set())
