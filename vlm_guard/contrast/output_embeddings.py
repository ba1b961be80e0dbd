"""What surrounds a model's output embeddings: the norm in front of them, and what is done to logits behind them."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vlm_guard.families.architecture import GenerativeModel

_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "embedding_norm")


def final_norm(model: GenerativeModel) -> nn.Module:
    """The decoder's norm before the output embeddings.

    Raises:
        ValueError: there is none by a known name.
    """
    decoder = model.get_decoder()
    norm = named_norm(decoder, getattr(decoder, "model", None))
    if norm is None:
        raise ValueError(f"no final norm found in {type(decoder).__name__}; set final_norm=False")
    return norm


def named_norm(*owners: object) -> nn.Module | None:
    """The first module of these that has one of the names models give their final norm; None where none has."""
    found = [getattr(owner, name, None) for owner in owners for name in _FINAL_NORMS]
    return next((module for module in found if isinstance(module, nn.Module)), None)


def after_output_embeddings(model: GenerativeModel) -> Callable[[Tensor], Tensor]:
    """What the model's forward pass does to its logits [..., V] after the output embeddings."""
    scale, divisor, softcap = (
        _logit_setting(model, name) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")
    )

    def finish(logits: Tensor) -> Tensor:
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    return finish


def _logit_setting(model: GenerativeModel, name: str) -> float | None:
    """What the model does to its logits after the output embeddings, if its forward pass does it.

    A vision-language model does not always repeat what its text model would do alone, so the setting of the text
    configuration counts only where the whole model's forward mentions it.
    """
    value = getattr(model.config.get_text_config(decoder=True), name, None)
    return value if value is not None and name in inspect.getsource(type(model).forward) else None
