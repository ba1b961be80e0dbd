"""The two models that come with the package: `builtin`, and `smol` with a real language model inside.

`builtin` is a standard ``LlavaForConditionalGeneration`` with a ``LlavaProcessor``: nothing about it is special to this
project, so every method, score and tool treats it as any other checkpoint. It was trained from nothing on the icon
scenes of ``vlm_guard.eval.scenes`` by ``python -m vlm_guard.eval.training`` and knows 80 icon classes and nothing else.

`smol` is SmolLM2-135M-Instruct that reads the same scenes, put together on first use from an installed package and from
what was trained here; see ``vlm_guard.smol_model``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

BUILTIN_DIR: Path = Path(__file__).parent / "builtin"
"""Folder with the weights, configuration, tokenizer, processor and chat template; a valid ``from_pretrained`` path."""


SMOL = "smol"
"""Name of the model with a real language model inside; `smol:SOURCE` takes that one from a folder or the hub."""


def is_shipped(name: str) -> bool:
    """Whether a model's name means one that comes with the package: `builtin`, `smol`, or `smol:SOURCE`."""
    return name in ("builtin", SMOL) or name.startswith(f"{SMOL}:")


def shipped_folder(name: str) -> Path:
    """The folder of a model that comes with the package; `smol` is put together first if it is not there.

    Raises:
        ValueError: the name means no such model, or `smol` lacks a part; the message says how to install it.
    """
    if not is_shipped(name):
        raise ValueError(f"{name!r} does not come with the package; those that do are builtin, smol and smol:SOURCE")
    if name == "builtin":
        return BUILTIN_DIR
    from vlm_guard.smol_model.assembly import smol_folder

    return smol_folder(name.partition(":")[2] or None)


def builtin(
    name: str = "builtin", *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model that comes with the package, and its processor, without touching the network.

    Args:
        name: ``"builtin"``; or ``"smol"``, which needs two more packages and is put together on the first call; or
            ``"smol:SOURCE"``, whose SmolLM2-135M-Instruct comes from a folder or from a Hugging Face id.
        dtype: Weights' type in memory; float32 by default (the file holds bfloat16, which CPUs compute slowly and in
            which greedy captions may differ in a few places).
        device: Where the model goes, for example ``"cpu"`` or ``"cuda"``.

    Returns:
        ``(model, processor)``, the model in evaluation mode.

    Raises:
        FileNotFoundError: the package was installed without its data files.
        ValueError: the name is unknown, or `smol` lacks a part.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if name == "builtin" and not (BUILTIN_DIR / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"The built-in model's weights are not in {BUILTIN_DIR}. Reinstall the package, or make them anew with "
            f"'python -m vlm_guard.eval.training OUT' and pass --model OUT."
        )
    folder = shipped_folder(name)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    return model.eval().to(device), processor
