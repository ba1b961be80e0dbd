"""Contrast decoding: how two sets of logits become one, and the branch a method wants beside the given prompt.

One formula serves VCD, ICD, PAI, M3ID, LQCD and perturbed-attention contrast, which differ in the branch they compare
with:

    z' = (1 + a) z_positive - a z_negative,   kept only where z_positive >= max(z_positive) + ln(plausibility)

The mask is the adaptive plausibility constraint of contrastive decoding (arXiv 2210.15097): only tokens at least
`plausibility` times as probable as the best one under the positive branch stay possible. Log-probabilities in place
of logits change z' by a constant per row, hence nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_guard.families.architecture import GenerativeModel
from vlm_guard.method.base import Sign
from vlm_guard.method.branch_prompt import BranchPrompt, GivenPrompt, image_markers

IMPLAUSIBLE = 1e4


def contrast_logits(positive: Tensor, negative: Tensor, strength: float | Tensor, plausibility: float = 0.0) -> Tensor:
    """(1 + strength) positive - strength negative, cut to the plausible tokens of `positive`.

    Args:
        positive: [B, V] logits (or log-probabilities).
        negative: [B, V].
        strength: a of the formula, a number or [B, 1].
        plausibility: tokens less than this times as probable as the best are impossible; 0 keeps all.

    Returns:
        [B, V]; implausible tokens are lowered by `IMPLAUSIBLE`, see `cut_implausible`.
    """
    mixed = positive + strength * (positive - negative)
    return cut_implausible(mixed, positive, plausibility)


def cut_implausible(scores: Tensor, positive: Tensor, plausibility: float) -> Tensor:
    """`scores` [B, V] without the tokens whose `positive` [B, V] is below its maximum + ln(plausibility).

    Such tokens get their positive logit lowered by `IMPLAUSIBLE`. That is a probability of exactly 0, and unlike the
    published minus infinity it leaves an order, by the positive branch, where a logits processor later forbids every
    plausible token (the end token under `min_new_tokens`, `suppress_tokens`, a grammar).
    """
    if plausibility <= 0:
        return scores
    least = positive.amax(-1, keepdim=True) + math.log(plausibility)
    return torch.where(positive < least, lower_implausible(positive), scores)


def lower_implausible(logits: Tensor) -> Tensor:
    """Logits of any shape so far down that their tokens have no probability, and keep their order."""
    return logits - IMPLAUSIBLE


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """The second branch that a method wants.

    Attributes:
        prompt: its token ids.
        images: "same" shares the features of the given images, "none" has no image, and a mapping replaces model
            inputs (such as `pixel_values`) and has the features computed anew.
        sign: whether the branch is the negative or the positive one; the given prompt is the other.
        active: [B] bool, the rows that are contrasted; the others keep the logits of the given prompt.
    """

    prompt: BranchPrompt
    images: Literal["same", "none"] | Mapping[str, Any] = "same"
    sign: Sign = "negative"
    active: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ContrastCall:
    """What `Method.contrast_branch` sees, once per generation.

    Attributes:
        prompt: the given prompt, with the edits that make a branch's prompt of it.
        inputs: the model inputs given to `generate` beside the ids (pixel values, sizes, ...).
        model: the model. processor: its processor, or None.
        prepared: what `Method.prepare` returned.
    """

    prompt: GivenPrompt
    inputs: Mapping[str, Any] = field(repr=False)
    model: GenerativeModel = field(repr=False)
    processor: Any = field(repr=False)
    prepared: Any = None

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer.

        Raises:
            ValueError: there is no processor, or it has no tokenizer.
        """
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("this method edits the prompt's text and needs the processor: wrap(model, processor, ...)")
        return tokenizer

    def text_branch(self) -> Branch:
        """The branch of the prompt without its pictures: visual tokens and the markers around them are cut out."""
        prompt = self.prompt.without_images(image_markers(self.model, self.processor))
        return Branch(prompt=prompt, images="none", active=self.prompt.has_image)

    def pixels(self) -> dict[str, Tensor]:
        """The image inputs given to `generate`, by name (`pixel_values`, for some families several)."""
        tensors = {name: value for name, value in self.inputs.items() if isinstance(value, Tensor)}
        return {
            name: value
            for name, value in tensors.items()
            if value.is_floating_point() and ("pixel" in name or name == "image_patches")
        }


def padding_id(model: GenerativeModel, processor: Any, visual_token_ids: tuple[int, ...]) -> int:
    """An id to pad branch prompts with: the model's or tokenizer's own, if it is not a visual token's."""
    tokenizer = getattr(processor, "tokenizer", None)
    owners = (model.generation_config, tokenizer, model.config.get_text_config(decoder=True))
    candidates = [getattr(owner, "pad_token_id", None) for owner in owners]
    usable = (id_ for id_ in (*candidates, *range(100)) if isinstance(id_, int) and id_ not in visual_token_ids)
    return next(usable)
