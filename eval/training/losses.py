"""The two training objectives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

from vlm_guard.eval.scenes.render import GRID
from vlm_guard.eval.training.batches import Batch, TextBatch, attention_mask
from vlm_guard.eval.training.model import PATCHES, normalise, visual_features
from vlm_guard.eval.training.recipe import Recipe

BACKGROUND_WEIGHT = 0.3

EARLY_LAYER = 4
"""Decoder layers after which a yes/no question's noun should know the answer."""


def patch_loss(
    model: LlavaForConditionalGeneration, visual: torch.Tensor, patches: torch.Tensor, words: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of naming every patch through the word embeddings, and the accuracy on object patches.

    The scores are products of projected visual tokens with word embeddings, so visual tokens come to lie where the
    words for what they show lie; the decoder then has little to learn to read them.

    Args:
        model: The model; its output layer is tied to the word embeddings.
        visual: (B, 64, 192) projected visual tokens.
        patches: int64 (B, 64), 0 or category index plus one.
        words: int64 (81,) token of the background and of each category.
    """
    scores = F.linear(visual, model.get_input_embeddings().get_parameter("weight")[words]).float()
    weight = torch.ones(len(words), device=scores.device)
    weight[0] = BACKGROUND_WEIGHT
    loss = F.cross_entropy(scores.flatten(0, 1), patches.flatten(), weight=weight)
    shown = patches > 0
    return loss, (scores.argmax(-1) == patches)[shown].float().mean()


def side_loss(model: LlavaForConditionalGeneration, visual: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of telling from a visual token whether its patch is in the left half of the picture.

    The vision tower knows it, but naming alone lets the projector drop it, and then nobody can say where a thing is.

    Args:
        model: The model.
        visual: (B, 64, 192) projected visual tokens.
        sides: int64 (2,) tokens of " left" and " right"; the difference of their embeddings reads the side.
    """
    rows = model.get_input_embeddings().get_parameter("weight")[sides]
    scores = F.linear(visual, rows[:1] - rows[1:]).float().squeeze(-1)
    left = (torch.arange(PATCHES, device=scores.device) % GRID < GRID // 2).float()
    return F.binary_cross_entropy_with_logits(scores, left.expand_as(scores))


def vision_step(
    model: LlavaForConditionalGeneration,
    batch: Batch,
    words: torch.Tensor,
    answers: torch.Tensor,
    recipe: Recipe,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and figures of the vision stage; see `joint_step` for the arguments."""
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        visual = visual_features(model, normalise(batch.pixels))
        naming, accuracy = patch_loss(model, visual, batch.patches, words)
        placing = side_loss(model, visual, answers[2:])
    figures = {"patch_loss": naming.item(), "patch_accuracy": accuracy.item(), "side_loss": placing.item()}
    return naming + recipe.side_weight * placing, figures


def _repeat_loss(
    scores: torch.Tensor, targets: torch.Tensor, exchange: torch.Tensor, words: torch.Tensor
) -> torch.Tensor:
    """Mean ``-log(1 - p)`` of the probability p given to categories that the same caption has already named.

    Args:
        scores: (T, V) logits at learned caption positions, in order.
        targets: int64 (T,).
        exchange: int64 (T,), equal for positions of the same caption.
        words: int64 (80,) the categories' tokens.
    """
    named = (targets[:, None] == words[None, :]).float()
    earlier = named.cumsum(0) - named
    # What was counted before this caption's first position belongs to other captions.
    starts = torch.ones_like(exchange, dtype=torch.bool)
    starts[1:] = exchange[1:] != exchange[:-1]
    first = torch.arange(len(targets), device=targets.device).where(starts, 0).cummax(0).values
    earlier = ((earlier - earlier[first]) > 0).float() * (1 - named)
    repeated = (scores.softmax(-1)[:, words] * earlier).sum(-1)
    return -(1 - repeated).clamp_min(1e-4).log().mean()


def _early_answer_loss(
    model: LlavaForConditionalGeneration, hidden: torch.Tensor, truths: torch.Tensor, answers: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy of reading the answer off the asked-about word itself, after :data:`EARLY_LAYER` layers.

    The answer is given several tokens later, and from that alone a small model finds very slowly that it has to compare
    a word with the picture. Here the difference of the output rows for the two answers reads the word's own hidden
    state; nothing is added to the model.

    Args:
        model: The model.
        hidden: (B, N, 192) hidden states in the middle of the decoder.
        truths: (B, N), 1 where the first answer is right, 0 where the second is, -1 where nothing is asked.
        answers: int64 (2,) tokens of the two answers.
    """
    asked = truths >= 0
    if not bool(asked.any()):
        return hidden.sum() * 0
    rows = model.lm_head.weight[answers]
    states = model.model.language_model.norm(hidden[asked])
    scores = F.linear(states, (rows[:1] - rows[1:])).float().squeeze(-1)
    return F.binary_cross_entropy_with_logits(scores, truths[asked])


def _decoder_mask(model: LlavaForConditionalGeneration, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask in the form that the decoder's attention takes: bool for SDPA, added to the scores for eager."""
    if model.config.get_text_config(decoder=True)._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, -3e4)


def joint_step(
    model: LlavaForConditionalGeneration,
    batch: TextBatch,
    words: torch.Tensor,
    answers: torch.Tensor,
    recipe: Recipe,
    prefix: int,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and figures of the joint stage: answers, patches, no repeats in captions, early answers.

    Args:
        model: The model.
        batch: Pictures with text.
        words: int64 (81,) token of the background and of each category.
        answers: int64 (4,) tokens of " Yes", " No", " left" and " right".
        recipe: Weights of the losses.
        prefix: Number of tokens before the first visual token.
    """
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        visual = visual_features(model, normalise(batch.pixels))
        naming, accuracy = patch_loss(model, visual, batch.patches, words)
        placing = side_loss(model, visual, answers[2:])
        embedded = model.get_input_embeddings()(batch.ids)
        embedded = torch.cat([embedded[:, :prefix], visual.to(embedded.dtype), embedded[:, prefix + PATCHES :]], dim=1)
        allowed = attention_mask(batch.blocks, batch.hidden, prefix)
        middle: list[torch.Tensor] = []
        watch = model.model.language_model.layers[EARLY_LAYER - 1].register_forward_hook(
            lambda _module, _inputs, output: middle.append(output)
        )
        hidden = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=_decoder_mask(model, allowed, torch.bfloat16),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        watch.remove()
        early = _early_answer_loss(model, middle[0], batch.presence, answers[:2])
        early_side = _early_answer_loss(model, middle[0], batch.side, answers[2:])
        learned = batch.labels[:, 1:] != -100
        scores = model.lm_head(hidden[:, :-1][learned]).float()
    targets, weights = batch.labels[:, 1:][learned], batch.weights[:, 1:][learned]
    each = F.cross_entropy(scores, targets, reduction="none")
    language = (each * weights).sum() / weights.sum()
    block = batch.blocks[:, 1:][learned]
    row = torch.arange(len(batch.ids), device=block.device)[:, None].expand_as(batch.blocks[:, 1:])[learned]
    captions = block == 1
    repeat = _repeat_loss(scores[captions], targets[captions], row[captions], words[1:])
    loss = (
        language
        + recipe.patch_weight * naming
        + recipe.side_weight * placing
        + recipe.repeat_weight * repeat
        + recipe.early_weight * (early + 0.5 * early_side)
    )
    figures = {
        "caption_loss": each[captions].mean().item(),
        # The first of an answer's two tokens; the second, the end of the text, is soon certain.
        "yes_no_loss": each[weights > 1.75][::2].mean().item() if bool((weights > 1.75).any()) else float("nan"),
        "short_loss": each[(weights < 1.75) & ~captions].mean().item(),
        "repeat_loss": repeat.item(),
        "early_loss": early.item(),
        "early_side_loss": early_side.item() if bool((batch.side >= 0).any()) else float("nan"),
        "patch_loss": naming.item(),
        "patch_accuracy": accuracy.item(),
        "side_loss": placing.item(),
    }
    return loss, figures
