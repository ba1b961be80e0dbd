"""How much a model prefers yes to no where its answer begins, read while it generates and without changing anything."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vlm_guard.eval.tasks.pope.parsers import token_readout, yes_no_token_ids


class YesNoMargin(LogitsProcessor):
    """Keeps the margin between yes and no of the first token's logits; give `generate` a new one each time.

    Args:
        yes_ids: the tokenizer's tokens for yes.
        no_ids: those for no.
        rows: prompts of the batch, B.
    """

    def __init__(self, yes_ids: list[int], no_ids: list[int], rows: int) -> None:
        self._yes_ids, self._no_ids, self._rows = yes_ids, no_ids, rows
        self._margin: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [B x beams, V] as they are."""
        if self._margin is None and scores.shape[0] % self._rows == 0:
            # All beams of a prompt begin alike; the margin stays where the logits are until somebody asks.
            beams = scores.shape[0] // self._rows
            self._margin = token_readout(scores[::beams].float(), self._yes_ids, self._no_ids)[1]
        return scores

    def margins(self) -> list[float | None]:
        """The margin of every prompt, positive for yes; None where there is none, or none that is finite."""
        if self._margin is None:
            return [None] * self._rows
        finite = torch.isfinite(self._margin).tolist()
        return [round(value, 6) if known else None for value, known in zip(self._margin.tolist(), finite)]


def yes_no_margin(processor: Any, rows: int) -> YesNoMargin | None:
    """A reader for a batch of so many prompts; None for a tokenizer that has no single tokens for yes and no."""
    try:
        yes_ids, no_ids = yes_no_token_ids(getattr(processor, "tokenizer", processor))
    except ValueError:
        return None
    return YesNoMargin(yes_ids, no_ids, rows)
