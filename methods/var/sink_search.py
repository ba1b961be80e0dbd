"""Finding the sink dimensions of a model from the model itself.

In many language models the first token carries massive activations in a few fixed dimensions of the
hidden state, and every other token that draws attention without content shows them in the same dimensions (VAR,
arXiv 2503.03321). They are found here by what sets the first token apart from the ordinary ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_guard.method import Fact, describe_architecture, unwrap

# A dimension stands out when the first token carries this share of its squared norm there ...
MIN_ENERGY_SHARE = 0.05
# ... and this many times the 90th percentile of the other tokens (sinks among them are rarer than one in ten).
MIN_CONTRAST = 3.0
# Published sets have one or two dimensions; more than four would no longer be "a few fixed dimensions".
MAX_DIMENSIONS = 4
# The first two layers show no sinks in any published model; VAR skips them for this reason.
FIRST_LAYER = 2
# A token is a sink when it reaches this share of the first token's activation.
THRESHOLD_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class SinkMeasurement:
    """Normalised activations of the first token against the others, median over prompts and layers.

    Attributes:
        first_token: [hidden size] |x_d| / rms(x) of the first token.
        others: [hidden size] 90th percentile of the same over the other tokens.
    """

    first_token: Tensor
    others: Tensor

    def dimensions(self) -> list[int]:
        """The dimensions that stand out, the strongest first; empty when none does."""
        energy = self.first_token.square() / self.first_token.numel()
        contrast = self.first_token / self.others.clamp_min(1e-6)
        standing_out = ((energy >= MIN_ENERGY_SHARE) & (contrast >= MIN_CONTRAST)).nonzero().flatten()
        ranked = standing_out[self.first_token[standing_out].argsort(descending=True)]
        return ranked[:MAX_DIMENSIONS].tolist()

    def strongest(self, count: int = 3) -> str:
        """The largest activations of the first token in words, for error messages."""
        values, dimensions = self.first_token.topk(count)
        return ", ".join(
            f"{int(d)} ({float(v):.1f}, others {float(self.others[d]):.1f})" for v, d in zip(values, dimensions)
        )


def measure_sinks(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SinkMeasurement:
    """Run the prompts (keyword arguments of the model's forward, batch 1 or left-padded) and look at the first tokens.

    `progress` is called with (finished, all) prompts.

    Raises:
        ValueError: no prompt was given, or the decoder has too few layers.
    """
    inner = unwrap(model)
    architecture = describe_architecture(inner)
    layers = [entry for entry in architecture.layers if entry.index >= FIRST_LAYER]
    if not prompts or not layers:
        raise ValueError(f"calibration needs at least one prompt and a decoder with more than {FIRST_LAYER} layers")
    seen: list[tuple[Tensor, Tensor]] = []

    def look(real: Tensor, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().float()
        normalised = hidden.abs() * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)
        for row, keep in zip(normalised, real.to(hidden.device)):
            tokens = row[keep]
            seen.append((tokens[0].cpu(), tokens[1:].quantile(0.9, dim=0).cpu()))

    for done, prompt in enumerate(prompts, 1):
        ids = prompt["input_ids"]
        mask = prompt.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        hooks = [
            entry.layer.register_forward_pre_hook(lambda *given, real=real: look(real, *given), with_kwargs=True)
            for entry in layers
        ]
        try:
            with torch.no_grad():
                inner(**prompt)
        finally:
            for hook in hooks:
                hook.remove()
        if progress is not None:
            progress(done, len(prompts))
    first = torch.stack([item[0] for item in seen]).median(0).values
    others = torch.stack([item[1] for item in seen]).median(0).values
    return SinkMeasurement(first_token=first, others=others)


def calibrate_sinks(model: nn.Module, prompts: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Fact]:
    """The profile facts `sink_dimensions` and `sink_threshold`; see `measure_sinks` for the arguments.

    Raises:
        ValueError: no dimension stands out: the model has no attention sinks of this kind, and VAR cannot work on it.
    """
    measured = measure_sinks(model, prompts, **options)
    dimensions = measured.dimensions()
    if not dimensions:
        raise ValueError(
            f"no hidden dimension of the first token stands out (strongest: {measured.strongest()}; wanted "
            f"{MIN_ENERGY_SHARE:.0%} of its squared norm and {MIN_CONTRAST:g} times the other tokens): this model "
            "shows no attention sinks of the kind VAR moves attention from"
        )
    reached = float(measured.first_token[dimensions].max())
    note = f"first token against the others in {len(prompts)} prompts, median over layers {FIRST_LAYER} and up"
    return {
        "sink_dimensions": Fact(value=sorted(dimensions), source="calibrated", note=note),
        "sink_threshold": Fact(
            value=round(THRESHOLD_SHARE * reached, 3),
            source="calibrated",
            note=f"{THRESHOLD_SHARE:g} of the first token's activation, {reached:.2f}",
        ),
    }
