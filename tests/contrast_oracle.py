"""Contrast decoding written out: one row at a time, no cache, no padding, two forward passes per token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlm_guard.families.family import entry_of
from zoo.prompts import SPECIAL_IDS, VOCABULARY

Combine = Callable[[Tensor, Tensor, int], Tensor]


def with_tokens(zoo, inputs: dict[str, Any], ids: list[int], generated: int) -> dict[str, Any]:
    """The inputs of one row with other token ids, with the token types the family derives from them."""
    input_ids = torch.tensor([ids])
    mask = torch.ones_like(input_ids)
    changed = {**inputs, "input_ids": input_ids, "attention_mask": mask}
    if zoo.family.token_inputs is not None:
        changed |= zoo.family.token_inputs(input_ids, mask)
    if zoo.family.name.startswith("paligemma") and generated:
        # Its prompt attends in both directions; generated tokens are read one after the other.
        changed["token_type_ids"][:, -generated:] = 1
    return changed


def next_logits(zoo, inputs: dict[str, Any], ids: list[int], generated: int = 0) -> Tensor:
    """[V] logits after `ids`, whose last `generated` were generated, from one whole forward pass."""
    for module in zoo.model.modules():
        if "rope_deltas" in vars(module):
            module.rope_deltas = None
    with torch.no_grad():
        # A family whose inner language model generates takes prompts without a picture there only.
        bare = "" if "pixel_values" in inputs else entry_of(zoo.model.config.model_type).generator
        model = zoo.model.get_submodule(bare)
        return model(**with_tokens(zoo, inputs, ids, generated)).logits[0, -1].float()


def decode(
    zoo,
    positive: tuple[dict[str, Any], list[int]],
    negative: tuple[dict[str, Any], list[int]],
    combine: Combine,
    steps: int,
) -> tuple[list[int], Tensor]:
    """Greedy tokens and the logits [steps, V] of each step for one row; branches are (inputs, prompt ids)."""
    tokens: list[int] = []
    rows = []
    for step in range(steps):
        branches = [next_logits(zoo, inputs, ids + tokens, step) for inputs, ids in (positive, negative)]
        rows.append(combine(*branches, step))
        allowed = rows[-1].clone()
        allowed[list(SPECIAL_IDS)] = -math.inf
        tokens.append(int(allowed[:VOCABULARY].argmax()))
    return tokens, torch.stack(rows)


def formula(strength: float | Callable[[int], float], plausibility: float) -> Combine:
    """The published formula, entry by entry; implausible tokens are lowered by ten thousand instead of forbidden."""

    def combine(positive: Tensor, negative: Tensor, step: int) -> Tensor:
        weight = strength(step) if callable(strength) else strength
        floor = positive.max() + math.log(plausibility)
        mixed = [
            (1 + weight) * p - weight * n if p >= floor else p - 10_000
            for p, n in zip(positive.tolist(), negative.tolist())
        ]
        return torch.tensor(mixed)

    return combine


def close(first: Tensor, second: Tensor, scale: float = 1.0) -> bool:
    """Equal within float32 rounding of sums in another order; impossible tokens must agree."""
    first, second = (scores.masked_fill(scores < -5000, -math.inf) for scores in (first, second))
    if not torch.equal(torch.isinf(first), torch.isinf(second)):
        return False
    finite = torch.isfinite(first)
    bound = 1e-4 * scale * max(1.0, float(second[finite].abs().max()))
    return float((first[finite] - second[finite]).abs().max()) <= bound
