"""Gaze shifts: where the attention on the image rises from one question token to the next (GIFT, arXiv 2510.22067)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.method import GenerationState, answer_opening, question_range, select_layers, select_layers_of
from vlm_guard.methods.shared.question_tokens import ContentWordFinder, content_flags, without_leading_space

if TYPE_CHECKING:
    from vlm_guard.method import GuardTarget


@dataclass(frozen=True, eq=False)
class GazePlan:
    """Where GIFT looks and acts in one model, and how it reads the question.

    Attributes:
        saliency: the decoder layer whose attention shifts are read.
        enhanced: the layers whose answer rows are enhanced.
        tokenizer: of the model; None takes all text after the image for the question.
        opening: what follows the question in the chat format; None where no chat template says so.
        find: finds content words; None counts every token of the question.
    """

    saliency: int
    enhanced: frozenset[int]
    tokenizer: Any
    opening: str | None
    find: ContentWordFinder | None

    @classmethod
    def of(cls, target: "GuardTarget", saliency_layer: str, layers: str, find: ContentWordFinder | None) -> "GazePlan":
        """The plan for one model.

        Raises:
            ValueError: the layers select nothing, more than one saliency layer, or one without attention.
        """
        depth, attending = target.architecture.depth, [entry.index for entry in target.architecture.layers]
        saliency = select_layers(saliency_layer, depth)
        if len(saliency) != 1:
            raise ValueError(f"gift: saliency_layer must name one layer, {saliency_layer!r} names {len(saliency)}")
        if saliency[0] not in attending:
            raise ValueError(
                f"gift: layer {saliency[0]} of this model has no attention to read; choose saliency_layer among "
                f"{', '.join(map(str, attending))}"
            )
        processor = target.processor
        return cls(
            saliency=saliency[0],
            enhanced=frozenset(select_layers_of(layers, target)),
            tokenizer=getattr(processor, "tokenizer", processor),
            opening=None if processor is None else answer_opening(processor),
            find=find,
        )

    @property
    def needs_pass(self) -> bool:
        """Whether the saliency is known too late for the first enhanced layer."""
        return min(self.enhanced) <= self.saliency


def question_flags(
    input_ids: Tensor, state: GenerationState, tokenizer: Any, opening: str | None, find: ContentWordFinder | None
) -> tuple[Tensor, Tensor, bool]:
    """Which keys are the question's, and which of the current rows are its content words.

    White space between the image and the question belongs to neither. Where nothing says how the chat format opens
    the answer, and no special token ends the question, that opening counts as question too.

    Args:
        input_ids: [B, Q] prompt tokens of this forward pass, from key position `state.offset` on.
        state: the generation.
        tokenizer: of the model; None takes all text after the image.
        opening: what follows the question in the chat format; None where that is not known.
        find: finds content words; None counts every token of the question.

    Returns:
        [B, offset + Q] bool and [B, Q] bool; rows without an image have no question. And whether the opening of the
        answer may have been taken for a part of it.
    """
    batch, count = input_ids.shape
    question = torch.zeros(batch, state.offset + count, dtype=torch.bool, device="cpu")
    content = torch.zeros(batch, count, dtype=torch.bool, device="cpu")
    real = state.real[:, state.offset : state.offset + count].cpu()
    has_image = state.visual.any(-1).tolist()
    open_ended = False
    for row, ids in enumerate(input_ids.tolist()):
        if not has_image[row]:
            continue
        places = real[row].nonzero().flatten()
        kept = [ids[place] for place in places]
        start, stop = question_range(kept, state.visual_token_ids, tokenizer, opening)
        start = without_leading_space(kept, start, stop, tokenizer)
        open_ended = open_ended or stop == len(kept)
        chosen = places[start:stop]
        question[row, state.offset + chosen] = True
        flags = [True] * len(chosen) if find is None else content_flags(kept[start:stop], tokenizer, find)
        content[row, chosen[torch.tensor(flags, dtype=torch.bool, device="cpu")]] = True
    return question.to(input_ids.device), content.to(input_ids.device), open_ended and opening is None


def top_heads(values: Tensor) -> Tensor:
    """[B, H, ...] bool, the half (at least one) of the H heads with the largest of `values` [B, H, ...]."""
    chosen = values.topk(max(1, values.shape[1] // 2), dim=1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, chosen, True)


def gaze_saliency(weights: Tensor, counts: Tensor, visual: Tensor) -> Tensor:
    """How much the attention on each visual token rises at the counted rows.

    Args:
        weights: [B, H, R, P] attention of consecutive question rows and the row before each of them, ascending.
        counts: [B, R] bool, the rows whose rise against the row before counts.
        visual: [B, P] bool.

    Returns:
        [B, P] float32: mean rise over rows and over the half of the heads that rise most, clipped to three standard
        deviations around its mean over the image and scaled to [0, 1]; zero elsewhere, and where nothing rises.
    """
    rise = (weights[:, :, 1:] - weights[:, :, :-1]).clamp_min(0)
    rise = rise * counts[:, None, 1:, None] * visual[:, None, None]
    by_head = rise.sum(2)
    heads = top_heads(by_head.sum(-1))
    number = counts[:, 1:].sum(-1).clamp_min(1)
    mean = (by_head * heads[..., None]).sum(1) / (heads.sum(1)[:, None] * number[:, None])
    saliency = torch.zeros_like(mean, dtype=torch.float32)
    for row in range(visual.shape[0]):
        values = mean[row, visual[row]].float()
        if values.numel() < 2:
            continue
        middle, spread = values.mean(), values.std()
        clipped = values.clamp(middle - 3 * spread, middle + 3 * spread)
        span = clipped.max() - clipped.min()
        saliency[row, visual[row]] = torch.where(span > 0, (clipped - clipped.min()) / span.clamp_min(1e-30), 0.0)
    return saliency


def gaze_bias(weights: Tensor, saliency: Tensor, visual: Tensor, question: Tensor, strength: float) -> Tensor:
    """What to add to the scores of the rows that predict the next token.

    Args:
        weights: [B, H, R, P] their attention as it is.
        saliency: [B, P] in [0, 1].
        visual: [B, P] bool.
        question: [B, P] bool.
        strength: the growth of an image weight is at most exp of this.

    Returns:
        [B, H, R, P] float32: strength * saliency in the heads that look at the image most, and ln r on the question in
        the heads that look at it most, r the growth of the former heads' attention on the image (one per row).
    """
    on_image = (weights * visual[:, None, None]).to(torch.float32)
    mass = on_image.sum(-1)
    looking = top_heads(mass)
    raised = strength * saliency[:, None, None]
    before = (mass * looking).sum(1, keepdim=True)
    after = ((on_image * raised.exp()).sum(-1) * looking).sum(1, keepdim=True)
    growth = torch.where(before > 0, after / before.clamp_min(1e-30), 1.0).log()
    asking = top_heads((weights * question[:, None, None]).sum(-1))
    return looking[..., None] * raised + (asking * growth)[..., None] * question[:, None, None]
