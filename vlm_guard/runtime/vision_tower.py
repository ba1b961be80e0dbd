"""How a vision tower is shaped, and the attention of one of its query rows.

Only what a method asks for is computed: one softmax row of a chosen layer, never a whole map. The tower's own attention
runs untouched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlm_guard.families.architecture import dispatches_attention
from vlm_guard.families.family import entry_of
from vlm_guard.method.attention_calls import WATCHER
from vlm_guard.runtime.attention_switch import restore_attention, switch_modules

# Learned tokens that towers put in front of the patches.
_CLASS_TOKENS = ("class_embedding", "cls_token")
SeeRow = Callable[[int, Tensor], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionTower:
    """The image encoder of a model.

    Attributes:
        module: the encoder.
        layers: its transformer layers, in order.
        attentions: the attention module of each layer.
        has_class_token: whether token 0 of every image is a class token instead of a patch.
    """

    module: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    has_class_token: bool

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)


def describe_vision_tower(model: PreTrainedModel, method: str) -> VisionTower:
    """The vision tower of `model`.

    Args:
        model: a vision-language model.
        method: who asks, for the error message.

    Raises:
        ValueError: the model has no tower of transformer layers whose attention can be watched.
    """
    entry, model_type = entry_of(model.config.model_type), model.config.model_type
    tower = model.get_submodule(entry.vision_tower) if entry.vision_tower else model.get_encoder(modality="image")
    absent = entry.no_tower
    if not absent and (tower is model or tower is getattr(model, "model", None)):
        absent = "no module of it is an image encoder"
    if absent:
        raise ValueError(f"{method} works inside the vision tower, and {model_type} has none it could use: {absent}")
    if tower.config.model_type in entry.packed_towers:
        raise ValueError(
            f"{method} works on one image after the other inside the vision tower, and that of {model_type} "
            f"({type(tower).__name__}) reads the patches of all images as one sequence"
        )
    modules = dict(tower.named_modules())
    names = [name for name, module in modules.items() if dispatches_attention(type(module))]
    parents = {name.rpartition(".")[0].rpartition(".")[0] for name in names}
    if not names or len(parents) != 1:
        raise ValueError(
            f"{method} needs a vision tower that is one stack of transformer layers; that of "
            f"{model_type} ({type(tower).__name__}) has {len(parents)} stacks it could work in"
        )
    has_class_token = any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in tower.named_parameters())
    return VisionTower(
        module=tower,
        layers=tuple(modules[name.rpartition(".")[0]] for name in names),
        attentions=tuple(modules[name] for name in names),
        has_class_token=has_class_token,
    )


def row_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """[N, H, T] float32 softmax weights of one query row.

    Args:
        query: [N, H, 1, D].
        key: [N, H, T, D].
        scaling: factor of q.k.
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scaling
    return scores.softmax(-1)[:, :, 0]


def watch_rows(tower: VisionTower, layers: tuple[int, ...], mean_query: bool, see: SeeRow) -> list[Callable[[], Any]]:
    """Show `see(layer, weights)` one attention row per image [N, H, T] of the given layers, at every pass.

    Args:
        tower: the vision tower.
        layers: indices of its layers.
        mean_query: the row of the mean query of all tokens, instead of the row of token 0.
        see: gets the layer and the weights.

    Returns:
        What undoes it.
    """
    modules = [tower.attentions[layer] for layer in layers]
    configs = switch_modules(modules)
    undo: list[Callable[[], Any]] = [lambda: restore_attention(configs)]
    for layer, module in zip(layers, modules):
        object.__setattr__(module, WATCHER, partial(_see_row, layer, mean_query, see))
        undo.append(partial(module.__dict__.pop, WATCHER))
    return undo


def _see_row(layer: int, mean_query: bool, see: SeeRow, query: Tensor, key: Tensor, scaling: float | None) -> None:
    with torch.no_grad():
        row = query.mean(2, keepdim=True) if mean_query else query[:, :, :1]
        see(layer, row_attention(row, key, query.shape[-1] ** -0.5 if scaling is None else scaling))
