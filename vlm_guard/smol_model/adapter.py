"""The trained part: low-rank changes of the language model's matrices, the projector, and the vision tower.

One safetensors file in bfloat16. The change of a matrix W [out, in] is `up` [out, r] times `down` [r, in]; applying it
adds the product to W, so the assembled model is an ordinary one and nothing of this is left at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import LlavaForConditionalGeneration

TRAINED_FILE = Path(__file__).parent / "trained" / "trained.safetensors"
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def changed_matrices(language_model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a Llama decoder whose matrices get low-rank changes, by their names in it."""
    for name, module in language_model.named_modules():
        if name.rpartition(".")[2] in MATRICES:
            yield name, module


def apply_trained(model: LlavaForConditionalGeneration, path: Path = TRAINED_FILE) -> None:
    """Put tower and projector into `model`, and add the low-rank changes to its language model (any dtype).

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it does not fit the model; names what is missing or too much.
    """
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(
            f"The trained part is not in {path}. Reinstall the package, or make it anew with "
            f"'python -m vlm_guard.eval.training.smol OUT'."
        )
    tensors: dict[str, Tensor] = load_file(path)
    matrices = dict(changed_matrices(model.model.language_model))
    parts = {"vision_tower": model.model.vision_tower, "projector": model.model.multi_modal_projector}
    wanted = {f"language_model.{name}.{half}" for name in matrices for half in ("down", "up")}
    wanted |= {f"{part}.{name}" for part, module in parts.items() for name in module.state_dict()}
    differing = sorted(wanted ^ set(tensors))
    if differing:
        raise ValueError(f"{path} does not fit the model: {len(differing)} tensors differ, the first is {differing[0]}")
    with torch.no_grad():
        for name, module in matrices.items():
            down, up = (tensors[f"language_model.{name}.{half}"].float() for half in ("down", "up"))
            weight = module.get_parameter("weight")
            weight.copy_((weight.float() + up @ down).to(weight.dtype))
        for part, module in parts.items():
            for name, weight in module.state_dict().items():
                weight.copy_(tensors[f"{part}.{name}"])
