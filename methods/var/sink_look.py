"""What is seen of attention sinks while a prompt is read: how much attention every token draws, and what marks it.

Which tokens draw attention is the truth; massive activations are only a sign of it. So a forward pass looks at both:
the attention every key receives, mean over the later rows and all heads, and the normalised activations of the hidden
states in the dimensions that stand out in the tokens which draw most.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import AttentionCall, HiddenCall, Method
from vlm_guard.methods.shared.received_attention import received_attention

# A token draws attention like a sink when it gets this share of what later rows have to give ...
MIN_DRAWN = 0.1
# ... and this many times what it would get if every row looked at all its keys alike.
MIN_TIMES_EVEN = 5.0
# A dimension can mark a sink when it holds this share of the sink's squared norm.
MIN_ENERGY_SHARE = 0.05
# Of tokens near the end of a prompt too few rows tell how much they draw: this share of the prompt must follow.
MIN_FOLLOWING = 0.2
# The first two layers show no sinks in any published model; VAR skips them for this reason.
FIRST_LAYER = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One prompt in one layer, the tokens that enough rows follow (T of them).

    Attributes:
        layer: index of the decoder layer.
        drawn: [T] share of attention, mean over later rows and heads.
        even: [T] the same if every row looked at all its keys alike.
        visual: [T] bool.
        dimensions: the dimensions that hold much of a sink's squared norm.
        activation: [T, number of dimensions] |x_d| / rms(x) of the hidden state that enters the layer.
    """

    layer: int
    drawn: Tensor
    even: Tensor
    visual: Tensor
    dimensions: tuple[int, ...]
    activation: Tensor

    @property
    def sinks(self) -> Tensor:
        """[T] bool: tokens that clearly draw attention."""
        return (self.drawn >= MIN_DRAWN) & (self.drawn >= MIN_TIMES_EVEN * self.even)

    @property
    def ordinary(self) -> Tensor:
        """[T] bool: tokens that draw less than an even share. The rest is unclear, and is held against nobody."""
        return self.drawn < self.even

    def of(self, dimensions: Sequence[int]) -> Tensor | None:
        """[T] the largest activation among `dimensions`; None when one of them was not looked at."""
        if any(dimension not in self.dimensions for dimension in dimensions):
            return None
        return self.activation[:, [self.dimensions.index(dimension) for dimension in dimensions]].amax(1)


@dataclass(frozen=True, kw_only=True)
class SinkLook(Method):
    """Changes nothing: looks at a prompt, and leaves a list of `Look` in the guard's findings."""

    name = "sink_look"
    title = "looking for attention sinks"
    stations = ("hidden", "attention")
    rows = "all"
    whole_prompt = "all"
    observes_hidden = True

    def observe_hidden(self, call: HiddenCall) -> None:
        """Keep the normalised activations until the layer's attention is known."""
        wide = call.hidden.detach().to(torch.float32)
        call.memory.activation = wide.abs() * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """Look; the attention stays as it is."""
        activations = call.memory.__dict__.pop("activation", None)
        every = None if activations is None or call.layer < FIRST_LAYER else call.select("all")
        if every is not None:
            rows = every.query.shape[2]
            counted = call.state.real[:, :rows].to(every.query.device)
            drawn = call.over_all_keys(received_attention(every, counted)).mean(1)
            looks = call.found.__dict__.setdefault("looks", [])
            for row, real in enumerate(call.state.real[:, :rows].cpu()):
                activation = activations[row].cpu()[real]
                looks.append(_look(call.layer, drawn[row].cpu()[real], call.state.visual[row].cpu()[real], activation))
        return None


def _look(layer: int, received: Tensor, visual: Tensor, activation: Tensor) -> Look:
    """Of sums of received attention [N], the visual mask [N] and all activations [N, hidden size]."""
    count = len(received)
    following = torch.arange(count, 0, -1, dtype=torch.float32)
    # Row i has i + 1 keys; key j is seen by the rows from j on.
    even = (1 / torch.arange(1, count + 1, dtype=torch.float32)).flip(0).cumsum(0).flip(0) / following
    kept = following >= max(2.0, MIN_FOLLOWING * count)
    look = Look(
        layer=layer,
        drawn=(received / following)[kept],
        even=even[kept],
        visual=visual[kept],
        dimensions=(),
        activation=activation[kept],
    )
    energy = look.activation[look.sinks].square().mean(0) / activation.shape[1]
    found = (energy >= MIN_ENERGY_SHARE).nonzero().flatten() if bool(look.sinks.any()) else energy.new_zeros(0).long()
    return Look(
        layer=layer,
        drawn=look.drawn,
        even=look.even,
        visual=look.visual,
        dimensions=tuple(found.tolist()),
        activation=look.activation[:, found],
    )


def look_at_prompts(
    prompts: Sequence[Mapping[str, Any]],
    wrapped: Callable[[Method], AbstractContextManager[Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Look]:
    """Read the prompts and look at every layer.

    Args:
        prompts: inputs of `generate`.
        wrapped: a context in which the model is guarded by a method, `MeasureCall.wrapped`.
        progress: called with (finished, all) prompts.

    Raises:
        ValueError: no prompt was given, or no layer could be looked at.
    """
    looks: list[Look] = []
    for done, prompt in enumerate(prompts, 1):
        with wrapped(SinkLook()) as guard, torch.no_grad():
            guard.generate(**prompt, max_new_tokens=1, do_sample=False)
            looks += getattr(guard.findings(SinkLook.name), "looks", [])
        if progress is not None:
            progress(done, len(prompts))
    if not looks:
        raise ValueError(f"calibration needs at least one prompt and a decoder with more than {FIRST_LAYER} layers")
    return looks
