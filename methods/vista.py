"""VISTA: visual steering vector and self-logits augmentation (ICML 2025, arXiv 2502.03628).

While an answer grows, what the picture says fades from the hidden states. VISTA reads the prompt with and without its
picture, takes the difference of the hidden states for what the picture says, and turns the outputs of all feed-forward
networks towards it. Beside that, it mixes the logits of late layers into the last ones, where words of meaning are
said to peak before function words take over.

Stations: hidden and logits. With h_l the hidden state behind layer l at the last prompt position,

  v_l = h_l(with the picture) - h_l(the same text without it)
  m'  = |m| unit( unit(m) + s' unit(v_l) ),   s' = strength (1 + max(0, cos(m, -v_l)))
  l'  = (1 - augmentation) l + augmentation * mean over late layers e of head(h_e), without the final norm

where m is what the feed-forward network of layer l adds to the residual stream, in every row: of the prompt, so that
keys and values of the picture are turned too, and of every generated token.

Where the values come from: strength 0.1 is the released parser's; the release runs CHAIR for LLaVA-1.5 with 0.17 and
POPE with 0.01, and its authors say that it depends on task and model. augmentation 0.3 and the layers (25 to 30 of 32,
which is what enters layers 26 to 31) are the release's. Read out without the final norm, as published for LLaMA-7B,
the late states of another model may be many times as long as normed ones and drown the final logits; `final_norm=True`
puts them through it. The paper speaks of the residual stream, the released code turns the feed-forward outputs; so does
this one. The release decomposes the differences of one pair by principal components: as one pair has none, its
decomposition returns the first coordinate axis, and 1 is added to coordinate 0 of the first layer's vector. That is an
accident, left out here; `variant="published"` has it.

Cost: before the first token, the prompt is read once more up to its end, and once without its picture; then a few
vector operations per layer and row, and one product with the output embeddings per late layer and token. The vector
belongs to one prompt, so a conversation that goes on with a cache is refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method import (
    ForwardCall,
    GuardTarget,
    HiddenEditCall,
    Method,
    Part,
    option,
    register,
    select_attending_layers,
    select_layers,
    variant_option,
)
from vlm_guard.methods.shared.prompt_pass import states_behind_layers, whole_prompt_inputs
from vlm_guard.methods.shared.steering import Direction, turn
from vlm_guard.methods.shared.text_stream import TextStream


@register("vista")
@dataclass(frozen=True, kw_only=True)
class VISTA(Method):
    """Turn hidden states towards what the picture changed in them, and add late layers' logits."""

    title = "VISTA"
    paper = (
        "The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via Visual Information "
        "Steering, ICML 2025, arXiv 2502.03628"
    )
    stations = ("hidden", "logits")
    needs = ("second branch",)
    hidden_rows = "all"
    whole_prompt = "all"
    cross_attention = "a learned gate stands between the feed-forward network of such a layer and what is added"

    strength: float = option(
        0.1,
        help="how far feed-forward outputs are turned towards what the picture changed; 0 switches this half off",
        range=(0.0, 10.0),
        neutral=0.0,
        tried=(0.01, 0.17),
        paper="lambda = 0.1 in the released parser, 0.17 in its CHAIR script, 0.01 in its POPE script",
    )
    augmentation: float = option(
        0.3,
        help="share of the late layers' logits; 0 switches this half off",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="alpha = 0.3 in the release",
    )
    layers: str = option("all", help="decoder layers whose feed-forward output is turned", paper="all in the release")
    late_layers: str = option(
        "80%-",
        help="layers whose entering hidden state is read out",
        paper="outputs of layers 25 to 30 of 32, which enter layers 26 to 31",
    )
    final_norm: bool = option(
        False, help="apply the decoder's final norm to the late layers' states", paper="not in the release"
    )
    first_axis: bool = option(
        False,
        help="add 1 to coordinate 0 of the first layer's vector",
        paper="an accident of the released decomposition",
        published=True,
    )
    variant: str = variant_option("published adds 1 to a coordinate, as the release's decomposition of one pair does")

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers of `layers` that have attention, as only these are known part by part."""
        return select_attending_layers(self.layers, target)

    def prompt_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """None: layers that compute only the last row of a prompt have only that one to turn."""
        return ()

    def hidden_parts(self, target: GuardTarget, prepared: None) -> dict[Part, tuple[int, ...]]:
        """The feed-forward outputs."""
        return {"mlp": self.active_layers(target)} if self.strength > 0 else {}

    def begin_forward(self, call: ForwardCall) -> None:
        """Read the prompt with and without its picture, before it is read for the answer."""
        shared, length = call.state.memory(self.name, -1), call.state.prompt_length
        if self.strength == 0 or getattr(shared, "length", None) == length:
            return
        inputs = whole_prompt_inputs(call, self.name)
        shared.length = inputs["input_ids"].shape[1]
        shared.directions = self._directions(call, inputs)

    def _directions(self, call: ForwardCall, inputs: dict) -> list[Direction]:
        """By layer [B, 1, D]; zero in rows without an image."""
        target, ids = call.guard.target, inputs["input_ids"]
        real = call.state.real[:, : ids.shape[1]]
        stream = TextStream.of(ids, real, target.architecture.visual_token_ids, target.model, target.processor)
        # Masks that were made for a cache do not fit a pass without one.
        seeing = states_behind_layers(call, inputs | {"attention_mask": stream.attention_mask}, stream.ends)
        blind = states_behind_layers(call, stream.inputs(inputs), stream.text_ends)
        found = []
        for layer, (with_picture, without) in enumerate(zip(seeing, blind)):
            vectors = with_picture.new_zeros(ids.shape[0], with_picture.shape[-1], dtype=torch.float32)
            difference = with_picture.float() - without.to(with_picture.device).float()
            if self.first_axis and layer == 0:
                difference[:, 0] += 1
            vectors[stream.with_image.to(vectors.device)] = difference
            found.append(Direction.of(vectors[:, None]))
        return found

    def edit_hidden(self, call: HiddenEditCall) -> Tensor | None:
        """The feed-forward outputs, turned."""
        directions = getattr(call.shared, "directions", None)
        if directions is None:
            return None
        towards = directions[call.layer].to(call.hidden.device)
        return turn(call.hidden, towards, self.strength, more_when_away=True)

    def contrasts(self) -> bool:
        """An augmentation of 0 leaves the logits alone."""
        return self.augmentation > 0

    def early_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The late layers that are read out."""
        return select_layers(self.late_layers, target.architecture.depth)

    def combine_layers(self, final: Tensor, early: Tensor, layers: tuple[int, ...]) -> Tensor:
        """The mix of the final and the late layers' logits."""
        return torch.lerp(final, early.mean(0), self.augmentation)
