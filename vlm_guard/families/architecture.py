"""How a model is shaped: its decoder layers, the attention modules that can be edited, and its visual token ids.

This is the only place that looks into model classes. What differs between families stands in their entries
(`vlm_guard/families/known/`); the generic entry fits every model whose decoder dispatches attention through
transformers' interface and whose image positions are placeholder ids in `input_ids`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from vlm_guard.families.family import ArchitectureEntry, entry_of

if TYPE_CHECKING:

    class GenerativeModel(PreTrainedModel):
        """A transformers model that generates from pictures, for which transformers itself has no class.

        Each such class mixes in `GenerationMixin`; here stands what of it, and of the models' own, is used.
        """

        generate: Callable[..., Any]
        get_image_features: Callable[..., Any]
        prepare_inputs_for_generation: Callable[..., dict[str, Any]]
        _expand_inputs_for_generation: Callable[..., tuple[torch.LongTensor, dict[str, Any]]]
        _maybe_prepare_encoder_kwargs_for_generation: Callable[..., dict[str, Any]]
        _prefill: Callable[..., Any]
        _prepare_generation_config: Callable[..., Any]
        _prepare_position_ids_for_generation: Callable[..., torch.Tensor]
        _supports_logits_to_keep: Callable[[], bool]
        _update_model_kwargs_for_generation: Callable[..., dict[str, Any]]
else:
    GenerativeModel = PreTrainedModel


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One decoder layer and its attention module.

    Attributes:
        index: number of the decoder layer.
        layer: the layer.
        attention: its attention module.
        reads_image: whether the module is a cross-attention whose keys are the image, all of them visual.
        last_rows_only: whether the layer reads an earlier layer's keys and values, so that of a prompt it computes only
            the rows whose logits are wanted: in `generate`, the last one.
    """

    index: int
    layer: nn.Module
    attention: nn.Module
    reads_image: bool = False
    last_rows_only: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """What the rest of the project needs to know about a model.

    Attributes:
        entry: what is known of its family.
        model_type: `config.model_type` of the whole model.
        generator: the model whose forward passes `generate` runs: the model itself, or for families that hand
            embeddings to an inner language model, that one.
        depth: number of decoder layers.
        layers: the decoder layers whose attention goes through the interface, ascending.
        visual_token_ids: placeholder ids of images and videos.
        marker_ids: ids of markers that the model embeds together with the image they stand around.
        hidden_size: width of the decoder.
        heads: query heads of a layer.
    """

    entry: ArchitectureEntry
    model_type: str
    generator: GenerativeModel
    depth: int
    layers: tuple[AttentionLayer, ...]
    visual_token_ids: tuple[int, ...]
    marker_ids: tuple[int, ...]
    hidden_size: int
    heads: int

    @property
    def decoder_layers(self) -> tuple[nn.Module, ...]:
        """All decoder layers by their index, those without attention of this kind too.

        Raises:
            ValueError: they do not lie in one list.
        """
        wanted = {id(entry.layer) for entry in self.layers}
        lists = (tuple(module) for module in self.generator.modules() if isinstance(module, nn.ModuleList))
        found = next((layers for layers in lists if wanted <= {id(layer) for layer in layers}), None)
        if found is None:
            raise ValueError(f"the decoder layers of {type(self.generator).__name__} do not lie in one list")
        return found


def unwrap(model: nn.Module) -> GenerativeModel:
    """The transformers model inside `model`, which may be wrapped by PEFT.

    Raises:
        TypeError: there is no transformers model inside.
        ValueError: PEFT prompt learning is active; it shifts every position, so visual tokens cannot be found.
    """
    if isinstance(model, GenerativeModel):
        return model
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            raise ValueError(
                f"PEFT {config.peft_type} adds virtual tokens in front of the prompt, which moves every visual token; "
                "merge it, or use LoRA-type adapters"
            )
    base = getattr(model, "get_base_model", None)
    inner = base() if callable(base) else None
    if not isinstance(inner, GenerativeModel):
        raise TypeError(
            f"wrap needs a transformers model such as AutoModelForImageTextToText.from_pretrained(...) gives, "
            f"given {type(model).__name__}"
        )
    return inner


def inference_device(model: nn.Module) -> torch.device:
    """Where inputs of the model belong: the device on which its input embeddings run, also when they are offloaded."""
    embeddings = unwrap(model).get_input_embeddings()
    device = embeddings.get_parameter("weight").device
    if device.type != "meta":
        return device
    # accelerate keeps offloaded weights elsewhere, and brings them to the device of its hook for each call.
    hook = embeddings._hf_hook
    devices = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", (hook,))]
    return torch.device(next(device for device in devices if device is not None))


def describe_architecture(model: PreTrainedModel) -> Architecture:
    """The shape of a vision-language model.

    Raises:
        ValueError: the model has no image tokens in its prompt, or its decoder's attention cannot be reached.
    """
    model_type = model.config.model_type
    entry = entry_of(model_type)
    if entry.refused:
        raise ValueError(f"{model_type} models cannot be guarded: {entry.refused}; see 'vlm-guard models'")
    generator = model.get_submodule(entry.generator)
    if not isinstance(generator, GenerativeModel):
        raise ValueError(
            f"{entry.generator!r}, which should be the language model of a {model_type} model, is "
            f"{type(generator).__name__}; the entry's generator must name a model that generates (docs/new-family.md)"
        )
    if model.config.is_encoder_decoder or generator.config.is_encoder_decoder:
        raise ValueError(
            f"{model_type} with this text model is an encoder-decoder: its image is read by an encoder, so there are "
            "no visual tokens among the decoder's keys to work on"
        )
    layers = _attention_layers(model, entry)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} ({model_type}) does not send its decoder attention through transformers' "
            "attention interface, so it cannot be edited; see 'vlm-guard models' for families that do"
        )
    token_ids = _visual_token_ids(model, entry)
    if not token_ids:
        raise ValueError(_no_token_ids(model, entry))
    text = model.config.get_text_config(decoder=True)
    return Architecture(
        entry=entry,
        model_type=model_type,
        generator=generator,
        depth=_size(text, "num_hidden_layers", model_type),
        layers=layers,
        visual_token_ids=token_ids,
        marker_ids=tuple(id_ for name in entry.marker_id_fields for id_ in _listed_ids(model.config, name)),
        hidden_size=_size(text, "hidden_size", model_type),
        heads=_size(text, "num_attention_heads", model_type),
    )


def _size(text: PreTrainedConfig, name: str, model_type: str) -> int:
    """One size that all decoder layers have.

    Raises:
        ValueError: they differ, or the configuration does not tell.
    """
    try:
        size = getattr(text, name, None)
    except RuntimeError:  # transformers' answer where layers have their own.
        size = None
    if not isinstance(size, int):
        raise ValueError(
            f"{model_type} models cannot be guarded: their configuration gives no {name} that holds for every decoder "
            "layer, and methods need one; see 'vlm-guard models' for families that work"
        )
    return size


def _visual_token_ids(model: PreTrainedModel, entry: ArchitectureEntry) -> tuple[int, ...]:
    found = [_field(model.config, name) for name in entry.token_id_fields]
    return tuple(dict.fromkeys(value for value in found if isinstance(value, int) and value >= 0))


def _field(config: PreTrainedConfig, name: str) -> object:
    """A field of the configuration, or after a dot one of a part of it."""
    found: object = config
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _listed_ids(config: PreTrainedConfig, name: str) -> tuple[int, ...]:
    """The ids that a field of the configuration lists; none where it has no such field.

    Raises:
        ValueError: it holds something else.
    """
    listed = _field(config, name)
    if listed is None:
        return ()
    if not isinstance(listed, list | tuple):
        raise ValueError(f"{name} of the configuration must be a list of token ids, it is {listed!r}")
    return tuple(listed)


def _no_token_ids(model: PreTrainedModel, entry: ArchitectureEntry) -> str:
    """Why a model without ids of visual tokens is refused."""
    name = f"{type(model).__name__} ({model.config.model_type})"
    sees = any("vision" in part or "image" in part for part in model.config.to_dict())
    if not sees:
        return f"{name} has no part that reads images in its configuration: it is a text model; see 'vlm-guard models'"
    return (
        f"{name} reads images, but its configuration has none of {', '.join(entry.token_id_fields)}, so its visual "
        "tokens cannot be found in a prompt; where another field holds their id, set that one, or register an entry "
        "with token_id_fields (docs/new-family.md)"
    )


def _attention_layers(model: PreTrainedModel, entry: ArchitectureEntry) -> tuple[AttentionLayer, ...]:
    decoder = model.get_submodule(entry.decoder) if entry.decoder else model.get_decoder()
    modules = dict(decoder.named_modules())
    first_sharing = getattr(decoder, "first_kv_shared_layer_idx", None)
    found: list[AttentionLayer] = []
    for name, module in modules.items():
        if not dispatches_attention(type(module)) or "vision" in name:
            continue
        parent_name, _, own_name = name.rpartition(".")
        parent = modules.get(parent_name)
        index = getattr(module, "layer_idx", None)
        if parent is not None:
            index = len(found) if index is None else index
            reads_image = own_name == entry.cross_attention
            last_rows_only = first_sharing is not None and index >= first_sharing
            found.append(AttentionLayer(index, parent, module, reads_image, last_rows_only))
    return tuple(sorted(found, key=lambda layer: layer.index))


def dispatches_attention(module_class: type[nn.Module]) -> bool:
    """Whether a module's forward asks transformers' attention interface for its implementation."""
    return _asks_interface(module_class.forward)


@cache
def _asks_interface(forward: Callable[..., Any]) -> bool:
    try:
        return "get_interface(" in inspect.getsource(forward)
    except (OSError, TypeError):
        return False
