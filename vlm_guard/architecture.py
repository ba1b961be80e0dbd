"""How a model is shaped: its decoder layers, the attention modules that can be edited, and its visual token ids.

This is the only place that looks into model classes. The generic description fits every model whose decoder
dispatches attention through transformers' interface and whose image positions are placeholder ids in `input_ids`.
"""

import inspect
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

_OWN_ATTENTION = "its decoder computes attention itself instead of through transformers' attention interface"
_OWN_GENERATE = (
    "its generate hands embeddings to an inner language model, so the guard cannot see which tokens are visual"
)
_CROSS_ATTENTION = "its image is read through cross-attention layers, not as visual tokens in the prompt"
REFUSED = {
    "git": _OWN_ATTENTION,
    "blip": _OWN_ATTENTION,
    "blip-2": _OWN_GENERATE,
    "instructblip": _OWN_GENERATE,
    "instructblipvideo": _OWN_GENERATE,
    "kosmos-2": _OWN_GENERATE,
    "kosmos-2.5": _OWN_GENERATE,
    "mllama": _CROSS_ATTENTION,
    "idefics": _CROSS_ATTENTION,
}
"""Model types that cannot be guarded, with the reason a user is told."""


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One decoder layer and its attention module."""

    index: int
    layer: nn.Module
    attention: nn.Module


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """What the rest of the project needs to know about a model.

    Attributes:
        model_type: `config.model_type` of the whole model.
        depth: number of decoder layers.
        layers: the decoder layers whose attention goes through the interface, ascending.
        visual_token_ids: placeholder ids of images and videos.
        hidden_size: width of the decoder.
        heads: query heads of a layer.
    """

    model_type: str
    depth: int
    layers: tuple[AttentionLayer, ...]
    visual_token_ids: tuple[int, ...]
    hidden_size: int
    heads: int


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, which may be wrapped by PEFT.

    Raises:
        TypeError: there is no transformers model inside.
        ValueError: PEFT prompt learning is active; it shifts every position, so visual tokens cannot be found.
    """
    if isinstance(model, PreTrainedModel):
        return model
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            raise ValueError(
                f"PEFT {config.peft_type} adds virtual tokens in front of the prompt, which moves every visual token; "
                "merge it, or use LoRA-type adapters"
            )
    base = getattr(model, "get_base_model", None)
    inner = base() if callable(base) else None
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            f"wrap needs a transformers model such as AutoModelForImageTextToText.from_pretrained(...) gives, "
            f"given {type(model).__name__}"
        )
    return inner


def inference_device(model: nn.Module) -> torch.device:
    """Where inputs of the model belong: the device of its input embeddings (parameters may be offloaded)."""
    return unwrap(model).get_input_embeddings().weight.device


def describe_architecture(model: PreTrainedModel) -> Architecture:
    """The shape of a vision-language model.

    Raises:
        ValueError: the model has no image tokens in its prompt, or its decoder's attention cannot be reached.
    """
    model_type = model.config.model_type
    if model_type in REFUSED:
        raise ValueError(f"{model_type} models cannot be guarded: {REFUSED[model_type]}; see 'vlm-guard models'")
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{model_type} is an encoder-decoder: its image is read by an encoder, so there are no visual tokens "
            "among the decoder's keys to work on"
        )
    layers = _attention_layers(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} ({model_type}) does not send its decoder attention through transformers' "
            "attention interface, so it cannot be edited; see 'vlm-guard models' for families that do"
        )
    token_ids = _visual_token_ids(model)
    if not token_ids:
        raise ValueError(
            f"{type(model).__name__} ({model_type}) has no image_token_id in its configuration: it is a text model, "
            "or it feeds images past the prompt; see 'vlm-guard models'"
        )
    text = model.config.get_text_config(decoder=True)
    return Architecture(
        model_type=model_type,
        depth=text.num_hidden_layers,
        layers=layers,
        visual_token_ids=token_ids,
        hidden_size=text.hidden_size,
        heads=text.num_attention_heads,
    )


def _visual_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = [getattr(model.config, name, None) for name in names]
    return tuple(dict.fromkeys(value for value in found if isinstance(value, int) and value >= 0))


def _attention_layers(model: PreTrainedModel) -> tuple[AttentionLayer, ...]:
    decoder = model.get_decoder()
    modules = dict(decoder.named_modules())
    found = []
    for name, module in modules.items():
        if not dispatches_attention(type(module)) or "vision" in name:
            continue
        parent = modules.get(name.rpartition(".")[0])
        index = getattr(module, "layer_idx", None)
        if parent is not None:
            found.append(AttentionLayer(len(found) if index is None else index, parent, module))
    return tuple(sorted(found, key=lambda layer: layer.index))


@cache
def dispatches_attention(module_class: type[nn.Module]) -> bool:
    """Whether a module's forward asks transformers' attention interface for its implementation."""
    try:
        return "get_interface(" in inspect.getsource(module_class.forward)
    except (OSError, TypeError):
        return False
