"""Every method with options that make it act on the tiny random models, for the invariants all methods share."""

from __future__ import annotations

from typing import Any

from vlm_guard.method.registry import method_names
from zoo import families

# Without a family that is refused, and one without visual tokens in its prompt (tests/test_cross_attention.py).
FAMILIES = [name for name in families() if name not in {"git", "mllama"}]

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
    "gift": {"content_words": "all", "saliency_layer": "0", "layers": "1-"},
}

# Methods that need something most families lack; they refuse the others, which their own tests check.
ONLY_FAMILIES: dict[str, set[str]] = {
    "paint": {"llava", "video_llava", "llava_gpt_oss", "llava_gemma2"},
}

# Families without what a method needs with the options above.
REFUSED_FAMILIES: dict[str, set[str]] = {
    "iri": {"blip_2"},  # the feed-forward networks of OPT are no modules
    "gift": {"qwen3_5"},  # its layer 0 has linear attention
    # Towers that read patches or pack their images into one sequence, and models without a tower.
    "uncertainty": {
        "chameleon",
        "fuyu",
        "glm4v",
        "llava_pixtral",
        "mistral3",
        "molmo2",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_vl",
        "qwen3_vl_moe",
    },
}


FOUR_LAYERS = {
    "llava_gpt_oss",
    "llava_gemma2",
    "gemma3",
    "paligemma2",
    "qwen3_5",
    "aya_vision",
    "cohere2_vision",
    "llama4",
}


def names() -> list[str]:
    """The methods under test."""
    return method_names()


def options(name: str, family: str = "llava") -> dict[str, Any]:
    """Options that make `name` act on the tiny random model of `family`."""
    if name == "iri":
        rates = ",".join(["0.9", "0.2", "0.5", "0.7"][: 4 if family in FOUR_LAYERS else 3])
        return {"attention_rates": rates, "mlp_rates": rates, "attention_strength": 1.0}
    return OPTIONS.get(name, {})


def supports(name: str, family: str) -> bool:
    """Whether method `name` works on the zoo's `family`."""
    return family in ONLY_FAMILIES.get(name, {family}) and family not in REFUSED_FAMILIES.get(name, set())
