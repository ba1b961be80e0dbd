"""The objectives of both stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlm_guard.eval.scenes.categories import NAMES
from vlm_guard.eval.scenes.render import GRID
from vlm_guard.eval.training.model import PATCHES

TEMPERATURE = 12.0
"""Scores are cosines times this."""

TYPICAL_NORM = 3.2
"""The mean norm of SmolLM2's word embeddings, to which visual tokens are held."""

_BACKGROUND_WEIGHT = 0.3


def name_directions(embeddings: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Unit vectors (81, 576): the background, and every category's name as the mean of its tokens' embeddings."""
    texts = [" background", *(f" {name}" for name in NAMES)]
    encoded = tokenizer(texts, add_special_tokens=False).input_ids
    return F.normalize(torch.stack([embeddings[ids].float().mean(0) for ids in encoded]), dim=-1)


def side_direction(embeddings: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """A unit vector (576,) from the word "right" to the word "left"."""
    left, right = (tokenizer(f" {side}", add_special_tokens=False).input_ids for side in ("left", "right"))
    return F.normalize(embeddings[left].float().mean(0) - embeddings[right].float().mean(0), dim=-1)


def naming_loss(visual: Tensor, patches: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of naming every patch through the word embeddings, and the accuracy on object patches.

    Args:
        visual: (V, 64, 576) projected visual tokens.
        patches: int64 (V, 64), 0 or category index plus one, -1 where nothing is known.
        names: (81, 576) out of `name_directions`.
    """
    scores = TEMPERATURE * F.normalize(visual.float(), dim=-1) @ names.T
    weight = torch.ones(len(names))
    weight[0] = _BACKGROUND_WEIGHT
    loss = F.cross_entropy(scores.flatten(0, 1), patches.flatten(), weight=weight, ignore_index=-1)
    shown = patches > 0
    return loss, (scores.argmax(-1) == patches)[shown].float().mean()


def side_loss(visual: Tensor, direction: Tensor) -> Tensor:
    """Cross-entropy of telling from a visual token whether its patch is in the left half of the picture."""
    scores = 8 * F.normalize(visual.float(), dim=-1) @ direction
    left = (torch.arange(PATCHES) % GRID < GRID // 2).float()
    return F.binary_cross_entropy_with_logits(scores, left.expand_as(scores))


def norm_loss(visual: Tensor) -> Tensor:
    """How far visual tokens are from the norm of word embeddings: the mean squared difference."""
    return (visual.float().norm(dim=-1) - TYPICAL_NORM).square().mean()


def repeat_loss(scores: Tensor, targets: Tensor, exchange: Tensor, firsts: Tensor) -> Tensor:
    """Mean ``-log(1 - p)`` of the probability p given to categories that the same description has already named.

    A category counts as named once the first token of its name has been said, in the singular or the plural.

    Args:
        scores: (T, V) logits at learned positions of descriptions, in order.
        targets: int64 (T,).
        exchange: int64 (T,), equal for positions of the same description.
        firsts: int64 (80, 2) out of `first_tokens`.
    """
    named = (targets[:, None, None] == firsts).any(-1).float()
    before = named.cumsum(0) - named
    # What was counted before this description's first position belongs to others.
    starts = torch.ones_like(exchange, dtype=torch.bool)
    starts[1:] = exchange[1:] != exchange[:-1]
    first = torch.arange(len(targets)).where(starts, 0).cummax(0).values
    earlier = (before - before[first]) > 0
    tokens = firsts.unique()
    owners = (tokens[:, None, None] == firsts).any(-1).float()
    # A token that several categories share, and that is right here, is no repeat.
    repeated = (earlier.float() @ owners.T > 0) & (tokens != targets[:, None])
    probability = scores.float().softmax(-1)[:, tokens]
    return -(1 - (probability * repeated).sum(-1)).clamp_min(1e-4).log().mean()
