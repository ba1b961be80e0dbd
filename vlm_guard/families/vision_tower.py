"""How a vision tower is shaped: its layers, their attention modules, whether token 0 is a class token."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from vlm_guard.families.architecture import dispatches_attention
from vlm_guard.families.family import entry_of

# Learned tokens that towers put in front of the patches.
_CLASS_TOKENS = ("class_embedding", "cls_token")


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
    if getattr(getattr(tower, "config", None), "model_type", None) in entry.packed_towers:
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
