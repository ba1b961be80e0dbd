"""Which tokens are visual, and which query rows a method may edit. Nothing else in the project decides that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method.base import RowScope


def visual_mask(input_ids: Tensor, visual_token_ids: Sequence[int]) -> Tensor:
    """[B, P] bool, True where a token of `input_ids` [B, P] stands for a patch of an image or a video frame.

    transformers' processors expand every image to one placeholder id per visual token, so that this comparison
    equals the model's own placeholder mask for any number of images and any padding.
    """
    mask = input_ids == visual_token_ids[0]
    for token_id in visual_token_ids[1:]:
        mask = mask | (input_ids == token_id)
    return mask


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSelection:
    """Query rows of one forward pass, as many per batch row as the longest needs.

    Attributes:
        index: [B, R] long, positions in the current queries; unused places repeat row 0.
        valid: [B, R] bool, which places are used.
        full: every place is used, so that nothing has to be kept.
    """

    index: Tensor
    valid: Tensor
    full: bool

    @classmethod
    def of(cls, wanted: Tensor) -> "RowSelection | None":
        """The rows where `wanted` [B, Q] is True; None when there are none. Costs one device synchronisation."""
        counts = wanted.sum(-1)
        longest = int(counts.max())
        if longest == 0:
            return None
        # A stable descending sort of the flags lists the wanted positions first, in order.
        order = wanted.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :longest]
        valid = torch.arange(longest, device=wanted.device) < counts[:, None]
        return cls(index=order.where(valid, 0), valid=valid, full=bool(valid.all()))

    def to(self, device: torch.device) -> "RowSelection":
        """The same selection on another device."""
        if self.index.device == device:
            return self
        return RowSelection(index=self.index.to(device), valid=self.valid.to(device), full=self.full)

    def take(self, tensor: Tensor) -> Tensor:
        """The selected rows of [B, H, Q, D] as [B, H, R, D]."""
        index = self.index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
        return tensor.gather(2, index)

    def take_mask(self, mask: Tensor) -> Tensor:
        """The selected rows of an attention mask [B or 1, 1 or H, Q, K]."""
        return self.take(mask.expand(self.index.shape[0], -1, -1, -1))

    def write(self, output: Tensor, rows: Tensor) -> Tensor:
        """Replace the selected rows of `output` [B, Q, H, D] by `rows` [B, R, H, D]; returns a new tensor."""
        index = self.index[:, :, None, None].expand(-1, -1, *output.shape[2:])
        if self.full:
            return output.scatter(1, index, rows)
        # Unused places all point at row 0, so they are sent to a spare row behind the last, which is then dropped.
        spare = output.shape[1]
        index = torch.where(self.valid[:, :, None, None], index, spare)
        extended = torch.cat((output, output[:, :1]), 1)
        return extended.scatter_(1, index, rows)[:, :spare]


def wanted_rows(
    scope: RowScope, visual: Tensor, first: int, count: int, prompt_length: int | None, real: Tensor
) -> Tensor:
    """Which of the current queries a scope covers.

    Args:
        scope: see `Method.rows`.
        visual: [B, T] bool visual mask of all tokens so far, the current ones included.
        first: position of the first current query.
        count: Q, number of current queries.
        prompt_length: length of the prompt if known; otherwise the current queries end it.
        real: [B, Q] bool, False for padding among the current queries.

    Returns:
        [B, Q] bool.
    """
    current = visual[:, first : first + count]
    has_image = visual.any(-1, keepdim=True)
    if scope == "all":
        return real & has_image
    if scope == "text":
        after_image = visual.cumsum(-1)[:, first : first + count] > 0
        return after_image & ~current & real
    position = torch.arange(first, first + count, device=visual.device)
    if prompt_length is not None:
        answer = (position >= prompt_length - 1).expand_as(current)
    else:
        last = torch.where(real, position, -1).amax(-1, keepdim=True)
        answer = position == last
    return answer & real & has_image


def spread_over_visual_tokens(passes: Sequence[Tensor], visual: Tensor, method: str) -> Tensor:
    """One value per patch of every image, put where the patches' visual tokens are.

    Args:
        passes: for every pass through the vision tower [N, P] values, of its N images in the order of their
            placeholders. Passes beyond the images of this prompt (of a contrast branch) are ignored.
        visual: [B, T] bool visual mask of the prompt.
        method: who asks, for the error message.

    Returns:
        [B, T] of the values' dtype, zero where no visual token is.

    Raises:
        ValueError: the visual tokens are not the patches one to one.
    """
    count, used = int(visual.sum()), 0
    values: list[Tensor] = []
    while passes and used < count and len(values) < len(passes):
        values.append(passes[len(values)].flatten())
        used += values[-1].numel()
    if used != count:
        shapes = ", ".join(f"{part.shape[0]} x {part.shape[1]}" for part in passes)
        raise ValueError(
            f"{method} needs one visual token for each patch of the vision tower; this prompt has {count} visual "
            f"tokens, the tower read {shapes or 0} patches (tiles, merged or pooled patches are not supported)"
        )
    spread = torch.zeros(visual.shape, dtype=passes[0].dtype, device=visual.device)
    spread[visual] = torch.cat(values).to(visual.device)
    return spread
