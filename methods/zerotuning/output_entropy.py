"""Choosing a strength without labels: the one that makes the model's next-token distribution most certain.

ZeroTuning (arXiv 2505.11739) chooses its factor this way when no labelled data are at hand: the mean entropy of the
output over unlabelled prompts falls where the factor helps. It is a proxy: a wrong answer can be certain too.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from vlm_guard.method import Fact

FACTORS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)


def mean_output_entropy(model: nn.Module, prompts: Sequence[Mapping[str, Any]]) -> float:
    """Mean entropy, in nats, of the distribution of the first answer token.

    Args:
        model: a vision-language model, guarded or not.
        prompts: keyword arguments of its forward, batch 1 or left-padded.

    Raises:
        ValueError: no prompt was given.
    """
    if not prompts:
        raise ValueError("the output's entropy needs at least one prompt")
    entropies = []
    for prompt in prompts:
        with torch.no_grad():
            logits = model(**prompt).logits[:, -1].float()
        entropies.append(torch.distributions.Categorical(logits=logits).entropy().cpu())
    return float(torch.cat(entropies).mean())


def calibrate_zerotuning(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    guarded: Callable[..., AbstractContextManager[Any]],
    *,
    factors: Sequence[float] = FACTORS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Fact]:
    """The profile fact `zerotuning_factor`: the factor with the smallest mean output entropy.

    Args:
        model: an unguarded vision-language model.
        prompts: unlabelled prompts with images, for example yes/no questions.
        guarded: a context in which the model is guarded by ZeroTuning with the given options.
        factors: the candidates; 1 among them means that changing nothing can win.
        progress: called with (finished, all) candidates.

    Raises:
        ValueError: no prompt or no candidate was given.
    """
    if not factors:
        raise ValueError("calibrating ZeroTuning needs at least one candidate factor")
    entropies: dict[float, float] = {}
    for done, factor in enumerate(factors, 1):
        with guarded(factor=factor):
            entropies[factor] = mean_output_entropy(model, prompts)
        if progress is not None:
            progress(done, len(factors))
    best = min(entropies, key=lambda factor: entropies[factor])
    listed = ", ".join(f"{factor:g}: {value:.3f}" for factor, value in entropies.items())
    note = f"smallest mean output entropy in nats over {len(prompts)} prompts without labels ({listed})"
    return {"zerotuning_factor": Fact(value=best, source="calibrated", note=note)}
