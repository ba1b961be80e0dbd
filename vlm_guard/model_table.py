"""Which model families work, said honestly: what the tests run, and on what.

No real checkpoint can be downloaded where this project is developed. "tested" therefore means: every invariant of
`tests/test_invariants.py` holds on a small randomly initialised model of the real architecture, with images.
"""

from dataclasses import asdict, dataclass
from typing import Any

from vlm_guard.architecture import REFUSED


@dataclass(frozen=True)
class TestedFamily:
    """One row of the table.

    Attributes:
        family: the name people use.
        model_type: `config.model_type`.
        text_models: text backbones it was tested with.
        zoo: the names of the test models.
        note: what is special about it.
    """

    family: str
    model_type: str
    text_models: tuple[str, ...]
    zoo: tuple[str, ...]
    note: str = ""


TESTED = (
    TestedFamily(
        "LLaVA 1.5, Pixtral (HF)",
        "llava",
        ("llama", "mistral", "gpt_oss", "gemma2"),
        ("llava", "llava_pixtral", "llava_gpt_oss", "llava_gemma2"),
        "learned sink logits and soft caps are kept",
    ),
    TestedFamily("LLaVA-NeXT", "llava_next", ("llama",), ("llava_next",)),
    TestedFamily("LLaVA-OneVision", "llava_onevision", ("qwen2",), ("llava_onevision",)),
    TestedFamily("Video-LLaVA", "video_llava", ("llama",), ("video_llava",), "tested with images"),
    TestedFamily("Mistral 3", "mistral3", ("mistral",), ("mistral3",)),
    TestedFamily("Qwen2-VL", "qwen2_vl", ("qwen2_vl_text",), ("qwen2_vl",)),
    TestedFamily("Qwen2.5-VL", "qwen2_5_vl", ("qwen2_5_vl_text",), ("qwen2_5_vl",)),
    TestedFamily("Qwen3-VL", "qwen3_vl", ("qwen3_vl_text",), ("qwen3_vl",)),
    TestedFamily("Qwen3-VL MoE", "qwen3_vl_moe", ("qwen3_vl_moe_text",), ("qwen3_vl_moe",)),
    TestedFamily("Qwen3.5", "qwen3_5", ("qwen3_5_text",), ("qwen3_5",), "only its full-attention layers are edited"),
    TestedFamily("GLM-4V", "glm4v", ("glm4v_text",), ("glm4v",)),
    TestedFamily("InternVL (HF)", "internvl", ("qwen2",), ("internvl",)),
    TestedFamily("Gemma 3", "gemma3", ("gemma3_text",), ("gemma3",), "sliding layers"),
    TestedFamily("PaliGemma 1 and 2", "paligemma", ("gemma", "gemma2"), ("paligemma", "paligemma2")),
    TestedFamily("Idefics2", "idefics2", ("mistral",), ("idefics2",)),
    TestedFamily("Idefics3", "idefics3", ("llama",), ("idefics3",)),
    TestedFamily("SmolVLM", "smolvlm", ("llama",), ("smolvlm",)),
    TestedFamily("Aya Vision", "aya_vision", ("cohere2",), ("aya_vision",), "sliding layers"),
    TestedFamily("Cohere2 Vision", "cohere2_vision", ("cohere2",), ("cohere2_vision",), "sliding layers"),
    TestedFamily("Llama 4", "llama4", ("llama4_text",), ("llama4",), "chunked attention"),
    TestedFamily("Ovis2", "ovis2", ("qwen2",), ("ovis2",)),
    TestedFamily("DeepSeek-VL", "deepseek_vl", ("llama",), ("deepseek_vl",)),
    TestedFamily("Janus", "janus", ("llama",), ("janus",)),
    TestedFamily("Molmo 2", "molmo2", ("molmo2_text",), ("molmo2",)),
    TestedFamily("Fuyu", "fuyu", ("persimmon",), ("fuyu",), "no vision tower"),
    TestedFamily("Chameleon", "chameleon", ("chameleon",), ("chameleon",), "no vision tower"),
)


def model_rows() -> list[dict[str, Any]]:
    """Every tested family, then the refused model types with the reason; JSON-able."""
    rows = [asdict(entry) | {"status": "tested on random weights"} for entry in TESTED]
    return rows + [
        {"family": name, "model_type": name, "text_models": (), "zoo": (), "note": reason, "status": "refused"}
        for name, reason in REFUSED.items()
    ]


def models_markdown() -> str:
    """The README's model table."""
    lines = ["| family | `model_type` | text backbones tested | status | note |", "|---|---|---|---|---|"]
    for row in model_rows():
        backbones = ", ".join(row["text_models"]) or "-"
        lines.append(f"| {row['family']} | `{row['model_type']}` | {backbones} | {row['status']} | {row['note']} |")
    return "\n".join(lines) + "\n"
