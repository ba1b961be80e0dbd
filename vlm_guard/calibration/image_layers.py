"""Which decoder layers look at the image: the share of attention on visual tokens, layer by layer.

Papers name layer ranges for one model ("12 to 22 of 32"). For another model a range can be measured instead: the layers
in which the row that begins the answer gives visual tokens at least as much attention as it does on average over the
layers. The rule is this project's. `layers="image"` of a method takes the range from the model's profile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vlm_guard.families.architecture import describe_architecture, unwrap
from vlm_guard.families.layers import layer_ranges
from vlm_guard.families.profiles import Fact
from vlm_guard.guard import wrap


def measure_image_shares(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, float]:
    """The share of attention on visual tokens by layer, mean over heads and prompts, of the row that begins the answer.

    Args:
        model: an unguarded vision-language model.
        prompts: inputs of `generate` with images.
        progress: called with (finished, all) prompts.

    Raises:
        ValueError: no prompt was given, or none has an image.
    """
    shares = []
    # Not every decoder layer has attention: hybrids mix it with linear layers.
    layers = tuple(entry.index for entry in describe_architecture(unwrap(model)).layers)
    for done, prompt in enumerate(prompts, 1):
        with wrap(model, None, "none") as guard, guard.trace(layer_ranges(layers)) as trace, torch.no_grad():
            guard.generate(**prompt, max_new_tokens=1, do_sample=False)
            if trace.steps:
                shares.append(trace.visual_share(guard.state.visual)[0].mean((1, 2)))
        if progress is not None:
            progress(done, len(prompts))
    if not shares:
        raise ValueError("measuring which layers look at the image needs at least one prompt with an image")
    return dict(zip(layers, torch.stack(shares).mean(0).tolist()))


def calibrate_image_layers(model: nn.Module, prompts: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Fact]:
    """The profile fact `image_layers`, a layer range; see `measure_image_shares` for the arguments."""
    shares = measure_image_shares(model, prompts, **options)
    mean = sum(shares.values()) / len(shares)
    listed = ", ".join(f"{layer}: {share:.3f}" for layer, share in shares.items())
    return {
        "image_layers": Fact(
            value=layer_ranges([layer for layer, share in shares.items() if share >= mean]),
            source="calibrated",
            note=f"layers whose share of attention on visual tokens reaches the mean of {mean:.3f} when the answer "
            f"begins, over {len(prompts)} prompts ({listed})",
        )
    }
