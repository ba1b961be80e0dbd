"""A prompt without its image: the rows that a forward pass over the text alone reads."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from vlm_guard.method import TOKEN_TYPES, BranchPrompt, GivenPrompt, image_markers, padding_id


@dataclass(frozen=True, kw_only=True, eq=False)
class TextStream:
    """The rows of a prompt that have an image, with visual tokens and their markers deleted.

    Attributes:
        batch: B, number of given rows.
        with_image: [M] long, the given rows that have an image.
        text: these M rows without it, padded on the left to their own longest.
        input_ids: [B, P] the given rows. attention_mask: [B, P] long, 0 for padding.
    """

    batch: int
    with_image: Tensor
    text: BranchPrompt
    input_ids: Tensor
    attention_mask: Tensor

    @classmethod
    def of(
        cls, input_ids: Tensor, real: Tensor, visual_token_ids: tuple[int, ...], model: Any, processor: Any
    ) -> "TextStream":
        """From a whole prompt.

        Args:
            input_ids: [B, P].
            real: [B, P] bool, False for padding.
            visual_token_ids: ids that stand for patches.
            model: knows markers and padding.
            processor: knows more of them; may be None.

        Raises:
            ValueError: nothing is left of a prompt without its image.
        """
        mask = real.to(input_ids.device).long()
        pad_id = padding_id(model, processor, visual_token_ids)
        given = GivenPrompt(input_ids=input_ids, attention_mask=mask, visual_token_ids=visual_token_ids, pad_id=pad_id)
        rows = given.has_image.nonzero().flatten()
        imaged = GivenPrompt(
            input_ids=input_ids[rows], attention_mask=mask[rows], visual_token_ids=visual_token_ids, pad_id=pad_id
        )
        text = imaged.without_images(image_markers(model, processor))
        return cls(batch=input_ids.shape[0], with_image=rows, text=text, input_ids=input_ids, attention_mask=mask)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """[M] row and [M] index of the last real token of every given row with an image."""
        place = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return self.with_image, (place * self.attention_mask[self.with_image]).argmax(-1)

    @property
    def text_ends(self) -> tuple[Tensor, Tensor]:
        """[M] row and [M] index of the last token of every row without its image."""
        rows = torch.arange(len(self.with_image), device=self.input_ids.device)
        return rows, torch.full_like(rows, self.text.length - 1)

    def inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Those of a forward pass over the text alone, at its own length, without a cache."""
        kept = {name: value for name, value in inputs.items() if _is_setting(name, value)}
        kept |= {"input_ids": self.text.input_ids, "attention_mask": self.text.attention_mask, "use_cache": False}
        if isinstance(inputs.get("position_ids"), Tensor):
            kept["position_ids"] = self._positions(inputs["position_ids"])
        for name in TOKEN_TYPES:
            if isinstance(inputs.get(name), Tensor):
                kept[name] = self.text.follow(inputs[name][self.with_image])
        return kept

    def _positions(self, given: Tensor) -> Tensor:
        """[..., M, length] positions: 0 upwards from each row's first token."""
        own = (self.text.attention_mask.cumsum(-1) - 1).clamp_min(0).to(given.dtype)
        return own.expand(*given.shape[:-2], *own.shape)


def _is_setting(name: str, value: Any) -> bool:
    """Inputs that belong neither to tokens nor to images nor to a cache."""
    return not isinstance(value, Tensor | dict | Cache) and name not in ("past_key_values", "use_cache")
