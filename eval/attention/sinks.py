"""Which tokens are attention sinks, layer by layer, and where each becomes one: in which block, by which part of it.

Sinks are not one list. The first token is one from an early layer to the last; others become sinks in the middle, by an
MLP of that depth, and stay for some layers (secondary sinks, arXiv 2512.22213). Measured on the prompt of a described
picture, over the rows that predict the answer:

  sink        a token that draws `DRAWN` of a layer's attention, mean over heads and rows, and `TIMES_EVEN` times what
              it would get if every row looked at all its keys alike.
  dimensions  those that hold `ENERGY` of the squared norm of the state with which a sink enters the layer. VAR and its
              kind recognise sinks by such dimensions.
  block       the first decoder layer behind which the token has `GROWN` of the size in these dimensions with which it
              enters the first layer where it is a sink, and keeps it until there; none where the embedding has it.
  share       of what that block adds there, along the change, the part that its MLP adds; attention adds the rest
              (more than all of it where attention works against the growth).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlm_guard.eval.attention.facts import PROMPT, decoder_with_pictures, extended
from vlm_guard.eval.attention.record import AttentionRecord, record_attention
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.families.architecture import Architecture
from vlm_guard.families.layer_parts import LayerPart, decoder_parts
from vlm_guard.method.visual_tokens import visual_mask

DRAWN = 0.1
TIMES_EVEN = 5.0
ENERGY = 0.05
GROWN = 0.5
ANSWER_TOKENS = 64
_ASKER = "the growth of sinks"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a token becomes a sink.

    Attributes:
        block: the decoder layer; None where the embedding has its size already.
        mlp_share: of the growth, what the block's MLP adds; None for the embedding, or of a block without such parts.
    """

    block: int | None
    mlp_share: float | None


@dataclass(frozen=True, kw_only=True)
class Sink:
    """A token of one prompt that is a sink in some layer.

    Attributes:
        visual: whether it is of the picture.
        dimensions: by layer in which it is a sink, the dimensions that mark it there.
        origin: where it becomes one; None where no dimension marks it.
    """

    visual: bool
    dimensions: Mapping[int, tuple[int, ...]]
    origin: Origin | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Followed:
    """What some tokens are on their way through the decoder.

    Attributes:
        states: [depth + 1, T, D] float32, entering each layer and leaving the last.
        attention, mlp: by layer [T, D] float32, what these parts add; layers without such parts are absent.
    """

    states: Tensor
    attention: Mapping[int, Tensor]
    mlp: Mapping[int, Tensor]


def sink_facts(model: nn.Module, processor: Any, images: Sequence[Image.Image], prompt: str = PROMPT) -> dict[str, Any]:
    """The measures above as JSON-able numbers, layer by layer and block by block.

    Args:
        model: an unguarded model with visual tokens in its decoder.
        processor: its processor.
        images: pictures; each is described greedily, and its whole attention kept for one forward pass.
        prompt: what the model is asked.

    Raises:
        ValueError: no pictures, or a family that keeps the picture outside of its decoder.
    """
    lacking = "decoder has no visual tokens that could be sinks"
    architecture = decoder_with_pictures(model, images, "sinks", lacking)
    template, device = find_template(processor), next(model.parameters()).device
    generate: Any = model.generate
    found: list[Sink] = []
    for picture in images:
        inputs = dict(template.encode(processor, [picture.convert("RGB")], [prompt]).to(device))
        length = inputs["input_ids"].shape[1]
        answer = generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)[0, length:]
        whole = extended(inputs, answer)
        found += sinks_of(model, architecture, whole, length, record_attention(model, whole))
    return summarised(architecture, found, len(images))


def sinks_of(
    model: nn.Module, architecture: Architecture, whole: Mapping[str, Any], length: int, record: AttentionRecord
) -> list[Sink]:
    """The sinks of one prompt with its answer.

    Args:
        model: unguarded.
        architecture: of it.
        whole: inputs of its forward, batch 1, prompt and answer.
        length: tokens of the prompt.
        record: what `record_attention` saw of them.
    """
    drawing = drawing_tokens(torch.stack([weights[:, length - 1 : -1] for weights in record.weights]), length).cpu()
    tokens = drawing.any(0).nonzero()[:, 0]
    if not len(tokens):
        return []
    followed = follow(model, architecture, whole, tokens)
    visual = visual_mask(whole["input_ids"], architecture.visual_token_ids)[0].cpu()
    layers = [entry.index for entry in architecture.layers]
    found = []
    for place, token in enumerate(tokens.tolist()):
        drawn_in = [layer for layer, draws in zip(layers, drawing[:, token].tolist()) if draws]
        dimensions = {layer: marking_dimensions(followed.states[layer, place]) for layer in drawn_in}
        first = drawn_in[0]
        origin = origin_of(followed, place, first, dimensions[first]) if dimensions[first] else None
        found.append(Sink(visual=bool(visual[token]), dimensions=dimensions, origin=origin))
    return found


def drawing_tokens(weights: Tensor, length: int) -> Tensor:
    """[layers, length] bool: prompt tokens that draw attention like sinks.

    Args:
        weights: [layers, H, R, L] attention of the R rows that predict an answer, the first of them the prompt's last.
        length: tokens of the prompt.
    """
    drawn = weights[..., :length].mean((1, 2))
    even = float((1 / torch.arange(length, length + weights.shape[2])).mean())
    return (drawn >= DRAWN) & (drawn >= TIMES_EVEN * even)


def marking_dimensions(state: Tensor) -> tuple[int, ...]:
    """The dimensions that hold `ENERGY` of the squared norm of a state [D], the largest first."""
    energy = state.square() / state.square().sum().clamp_min(1e-30)
    order = energy.argsort(descending=True)[: int(1 / ENERGY)]
    return tuple(int(dimension) for dimension in order if energy[dimension] >= ENERGY)


def origin_of(followed: Followed, place: int, first: int, dimensions: Sequence[int]) -> Origin:
    """Where one of the followed tokens gets its size.

    Args:
        followed: the tokens' way.
        place: which of them.
        first: the first layer where it is a sink.
        dimensions: that mark it there.
    """
    states = followed.states[:, place][:, list(dimensions)]
    sizes = states[: first + 1].norm(dim=-1)
    small = (sizes < GROWN * sizes[-1]).nonzero()[:, 0].tolist()
    if not small:
        return Origin(block=None, mlp_share=None)
    block = small[-1]
    change = states[block + 1] - states[block]
    if block not in followed.mlp or block not in followed.attention:
        return Origin(block=block, mlp_share=None)
    mlp, attention = (
        float(part[block][place, list(dimensions)] @ change) for part in (followed.mlp, followed.attention)
    )
    # Along the change both make up all of it, but for a factor where a family scales what its parts add.
    return Origin(block=block, mlp_share=mlp / (mlp + attention) if mlp + attention else None)


@torch.no_grad()
def follow(model: nn.Module, architecture: Architecture, whole: Mapping[str, Any], tokens: Tensor) -> Followed:
    """The way of some tokens [T] of one sequence through the decoder, by one forward pass."""
    modules, depth = architecture.decoder_layers, architecture.depth
    states: dict[int, Tensor] = {}
    added: dict[str, dict[int, Tensor]] = {"attention": {}, "mlp": {}}
    hooks = []

    def taken(output: Any) -> Tensor:
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden.detach().reshape(-1, hidden.shape[-1])[tokens.to(hidden.device)].float().cpu()

    for part in _parts_that_add(architecture):
        kept = added[part.part]
        hooks.append(
            part.module.register_forward_hook(lambda _m, _a, out, k=kept, n=part.layer: k.update({n: taken(out)}))
        )
    for number, module in enumerate(modules[:depth]):

        def entering(_module: nn.Module, args: tuple, kwargs: dict[str, Any], number: int = number) -> None:
            states[number] = taken(args[0] if args else kwargs["hidden_states"])

        hooks.append(module.register_forward_pre_hook(entering, with_kwargs=True))
    hooks.append(modules[depth - 1].register_forward_hook(lambda _m, _a, out: states.update({depth: taken(out)})))
    try:
        model(**whole, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Followed(states=torch.stack([states[number] for number in range(depth + 1)]), **added)


def _parts_that_add(architecture: Architecture) -> list[LayerPart]:
    """Attention and MLP of every layer that has both as modules of their own."""
    found: list[LayerPart] = []
    for entry in architecture.layers:
        try:
            found += decoder_parts(architecture, {"attention": [entry.index], "mlp": [entry.index]}, _ASKER)
        except ValueError:
            continue  # Such a layer's growth is told, and not by which part.
    return found


def summarised(architecture: Architecture, sinks: Sequence[Sink], pictures: int) -> dict[str, Any]:
    """What `sink_facts` returns, of the sinks of so many pictures."""
    layers = [entry.index for entry in architecture.layers]
    by_layer = []
    for layer in layers:
        here = [sink for sink in sinks if layer in sink.dimensions]
        marked = Counter(dimension for sink in here for dimension in sink.dimensions[layer])
        by_layer.append(
            {
                "layer": layer,
                "sinks": round(len(here) / pictures, 3),
                "in_picture": round(sum(sink.visual for sink in here) / pictures, 3),
                "new": round(sum(min(sink.dimensions) == layer for sink in here) / pictures, 3),
                "dimensions": sorted(name for name, count in marked.items() if 2 * count >= len(here)),
            }
        )
    blocks = sorted(
        {sink.origin.block for sink in sinks if sink.origin is not None}, key=lambda b: -1 if b is None else b
    )
    return {
        "pictures": pictures,
        "rule": {"drawn": DRAWN, "times_even": TIMES_EVEN, "energy": ENERGY, "grown": GROWN},
        "depth": architecture.depth,
        "by_layer": by_layer,
        "grown_in": [
            _of_block(block, [s for s in sinks if s.origin is not None and s.origin.block == block], pictures)
            for block in blocks
        ],
        "without_dimension": round(sum(sink.origin is None for sink in sinks) / pictures, 3),
    }


def _of_block(block: int | None, sinks: Sequence[Sink], pictures: int) -> dict[str, Any]:
    """The sinks that get their size in one block; None stands for the embedding."""
    shares = [sink.origin.mlp_share for sink in sinks if sink.origin is not None and sink.origin.mlp_share is not None]
    return {
        "block": block,
        "sinks": round(len(sinks) / pictures, 3),
        "in_picture": round(sum(sink.visual for sink in sinks) / pictures, 3),
        "mlp_share": round(sum(shares) / len(shares), 4) if shares else None,
        "first_layer": min(min(sink.dimensions) for sink in sinks),
        "layers_long": round(sum(len(sink.dimensions) for sink in sinks) / len(sinks), 2),
    }
