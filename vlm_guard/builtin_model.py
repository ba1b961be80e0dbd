"""The small vision-language model that ships inside the package.

It is a standard ``LlavaForConditionalGeneration`` with a ``LlavaProcessor``: nothing about it is special to this
project, so every method, score and tool treats it as any other checkpoint. It was trained from nothing on the icon
scenes of ``vlm_guard.eval.scenes`` by ``python -m vlm_guard.eval.training`` and knows 80 icon classes and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

BUILTIN_DIR: Path = Path(__file__).parent / "builtin"
"""Folder with the weights, configuration, tokenizer, processor and chat template; a valid ``from_pretrained`` path."""


def builtin(
    *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load the built-in model and its processor without touching the network.

    Args:
        dtype: Weights' type in memory; float32 by default (the file holds bfloat16, which CPUs compute slowly and in
            which greedy captions may differ in a few places).
        device: Where the model goes, for example ``"cpu"`` or ``"cuda"``.

    Returns:
        ``(model, processor)``, the model in evaluation mode.

    Raises:
        FileNotFoundError: the package was installed without its data files.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if not (BUILTIN_DIR / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"The built-in model's weights are not in {BUILTIN_DIR}. Reinstall the package, or make them anew with "
            f"'python -m vlm_guard.eval.training OUT' and pass --model OUT."
        )
    model = AutoModelForImageTextToText.from_pretrained(
        BUILTIN_DIR, dtype=dtype or torch.float32, local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(BUILTIN_DIR, local_files_only=True)
    return model.eval().to(device), processor
