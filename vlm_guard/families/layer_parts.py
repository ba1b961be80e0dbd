"""The parts of a transformer layer whose outputs make up the residual stream: attention, feed-forward network, layer.

Where a layer normalises an output before adding it (Gemma 2 and 3, GLM-4V), the normalised one is meant.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from vlm_guard.families.architecture import Architecture
from vlm_guard.families.vision_tower import VisionTower

Part = Literal["entering", "attention", "mlp", "residual"]
PARTS: tuple[Part, ...] = ("entering", "attention", "mlp", "residual")
"""The residual stream in front of a layer, what attention and feed-forward network add to it, the stream behind it."""

_FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
_NORMS_IN_FRONT = ("input_layernorm", "attention_norm", "operator_norm")
_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "attn_out")
# Norms behind a part, by the child that tells such a layer from the usual one.
_NORMS_BEHIND = {
    "pre_feedforward_layernorm": {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    "post_self_attn_layernorm": {"attention": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"},
}


@dataclass(frozen=True, eq=False)
class LayerPart:
    """A part of one layer, and the module whose output it is; "entering" is the layer's input."""

    part: Part
    layer: int
    module: nn.Module


def decoder_parts(
    architecture: Architecture, wanted: Mapping[Part, Iterable[int]], method: str
) -> tuple[LayerPart, ...]:
    """Parts of decoder layers, in the order in which they run.

    Args:
        architecture: of the model.
        wanted: the layers of each part; of "attention" and "mlp" only layers with attention that the guard reaches.
        method: who asks, for the error message.

    Raises:
        ValueError: a layer has no such part as a module of its own.
    """
    attending = {entry.index: entry for entry in architecture.layers}
    whole = architecture.decoder_layers if {"entering", "residual"} & {*wanted} else ()
    found = []
    for part in PARTS:
        for layer in wanted.get(part, ()):
            if part in ("entering", "residual"):
                found.append(LayerPart(part, layer, whole[layer]))
                continue
            if layer not in attending:
                raise ValueError(
                    f"{method} acts on the {part} output of decoder layer {layer} of this {architecture.model_type} "
                    f"model, which has no attention; choose among {', '.join(map(str, attending))}"
                )
            entry = attending[layer]
            owner = f"{type(entry.layer).__name__} of {architecture.model_type}"
            found.append(LayerPart(part, layer, _part_of(entry.layer, entry.attention, part, method, owner)))
    return tuple(sorted(found, key=lambda item: (item.layer, PARTS.index(item.part))))


def attending_parts(architecture: Architecture, method: str) -> tuple[LayerPart, ...]:
    """The attention and feed-forward parts of every layer with attention; see `decoder_parts`."""
    layers = [entry.index for entry in architecture.layers]
    return decoder_parts(architecture, {"attention": layers, "mlp": layers}, method)


def tower_parts(tower: VisionTower, wanted: Mapping[Part, Iterable[int]], method: str) -> tuple[LayerPart, ...]:
    """Parts of a vision tower's layers; see `decoder_parts`."""
    owner = f"the vision tower ({type(tower.module).__name__})"
    return tuple(
        LayerPart(part, layer, _part_of(tower.layers[layer], tower.attentions[layer], part, method, owner))
        for part, layers in wanted.items()
        for layer in layers
    )


def replace_input(
    args: tuple, kwargs: dict[str, Any], edit: Callable[[Tensor], Tensor | None]
) -> tuple[tuple, dict[str, Any]] | None:
    """A layer's arguments with its hidden states after `edit`; None leaves them as they are."""
    edited = edit(args[0] if args else kwargs["hidden_states"])
    if edited is None:
        return None
    return ((edited, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": edited})


def replace_output(output: Any, edit: Callable[[Tensor], Tensor | None]) -> Any:
    """A module's output, a tensor or a tuple that begins with it, after `edit`; None leaves it as it is."""
    first = output[0] if isinstance(output, tuple) else output
    edited = edit(first)
    if edited is None:
        return output
    return (edited, *output[1:]) if isinstance(output, tuple) else edited


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The way through a decoder layer that leaves its attention out.

    Attributes:
        enter: the norm in front of the attention.
        before: the norm in front of the feed-forward network; that in front of the attention where both run side by
            side.
        network: the feed-forward network.
        behind: the norm behind it, or None.
    """

    enter: nn.Module
    before: nn.Module
    network: nn.Module
    behind: nn.Module | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """The residual stream [B, Q, D] with what norm and feed-forward network add to it."""
        output = self.network(self.before(hidden))
        added = (output[0] if isinstance(output, tuple) else output).view(hidden.shape)
        return hidden + (added if self.behind is None else self.behind(added))


def feed_forward_of(layer: nn.Module, method: str) -> FeedForward:
    """The way through a decoder layer that leaves its attention out.

    Raises:
        ValueError: its norms or its feed-forward network are no modules by a known name.
    """
    children = dict(layer.named_children())
    network = next((children[name] for name in _FEED_FORWARD if name in children), None)
    enter = next((children[name] for name in _NORMS_IN_FRONT if name in children), None)
    if network is None or enter is None:
        raise ValueError(
            f"{method} sends a state through the norms and the feed-forward network of a layer, and "
            f"{type(layer).__name__} does not have them as modules; its parts: {', '.join(children)}"
        )
    marker = next((name for name in _NORMS_BEHIND if name in children), None)
    behind = None if marker is None else children[_NORMS_BEHIND[marker]["mlp"]]
    before = children.get("pre_feedforward_layernorm", children.get("post_attention_layernorm", enter))
    return FeedForward(enter, before, network, behind)


def output_projection(attention: nn.Module, method: str) -> nn.Module:
    """What an attention module sends its heads' outputs through.

    Raises:
        ValueError: there is none by a known name.
    """
    children = dict(attention.named_children())
    found = next((children[name] for name in _OUTPUT_PROJECTIONS if name in children), None)
    if found is None:
        raise ValueError(
            f"{method} sends heads' outputs through the attention's output projection, and "
            f"{type(attention).__name__} has none by a known name; its parts: {', '.join(children)}"
        )
    return found


def _part_of(layer: nn.Module, attention: nn.Module, part: Part, method: str, owner: str) -> nn.Module:
    if part == "residual":
        return layer
    children = dict(layer.named_children())
    marker = next((name for name in _NORMS_BEHIND if name in children), None)
    if marker is not None:
        return children[_NORMS_BEHIND[marker][part]]
    if part == "attention":
        return attention
    feed_forward = next((children[name] for name in _FEED_FORWARD if name in children), None)
    if feed_forward is None:
        raise ValueError(
            f"{method} acts on the feed-forward network of each layer, and {owner} has none as a module; "
            f"its parts: {', '.join(children)}"
        )
    return feed_forward
