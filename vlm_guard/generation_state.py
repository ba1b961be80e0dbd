"""Everything a guard knows about one generation. A new one is made for every call, so nothing is left over."""

import weakref
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlm_guard.method import RowScope
from vlm_guard.visual_tokens import RowSelection, visual_mask, wanted_rows


class GenerationState:
    """The visual mask of a prompt, the rows being edited now, and what the methods remember.

    Attributes:
        visual: [B, T] bool, visual tokens of everything read so far (grows while a prompt is read in chunks).
        real: [B, T] bool, False for padding.
        prompt_length: length of the prompt when `generate` told it, else None.
        active: whether any row has a visual token; if not, the guard does nothing.
        reading: whether the current forward pass reads prompt tokens.
        offset: key position of the first current query.
    """

    def __init__(self, visual_token_ids: tuple[int, ...], prompt_length: int | None = None) -> None:
        self.visual_token_ids = visual_token_ids
        self.prompt_length = prompt_length
        self.visual: Tensor | None = None
        self.real: Tensor | None = None
        self.active = False
        self.reading = True
        self.offset = 0
        self.cache: weakref.ref | None = None
        self._memory: dict[tuple[str, int], SimpleNamespace] = {}
        self._rows: dict[RowScope, RowSelection | None] = {}
        self._row_masks: dict[tuple[RowScope, int], tuple[Tensor, Tensor]] = {}

    def read(self, input_ids: Tensor, attention_mask: Tensor | None, offset: int, cache: Any) -> None:
        """Take in the tokens of a forward pass: `input_ids` [B, Q] at key positions from `offset` on."""
        if cache is not None and self.cache is None:
            self.cache = weakref.ref(cache)
        self._rows.clear()
        self._row_masks.clear()
        self.offset = offset
        count = input_ids.shape[1]
        current = visual_mask(input_ids, self.visual_token_ids)
        total = offset + count
        if self.prompt_length is not None:
            # A model may generate a placeholder id; only those of the prompt stand for an image.
            position = torch.arange(offset, total, device=current.device)
            current = current & (position < self.prompt_length)
        if attention_mask is not None and attention_mask.dim() == 2:
            real = attention_mask[:, offset:total].bool()
        else:
            real = torch.ones_like(current)
        if offset == 0 or self.visual is None:
            self.visual, self.real = current, real
        else:
            self.visual = torch.cat((self.visual[:, :offset], current), 1)
            self.real = torch.cat((self.real[:, :offset], real), 1)
        self.reading = self.prompt_length is None or offset < self.prompt_length
        if self.reading:
            self.active = self.active or bool(self.visual.any())

    def rows(self, scope: RowScope, count: int) -> RowSelection | None:
        """The rows of the current queries (Q = `count`) that `scope` covers; None when there are none."""
        if scope not in self._rows:
            real = self.real[:, self.offset :]
            wanted = wanted_rows(scope, self.visual, self.offset, count, self.prompt_length, real)
            self._rows[scope] = RowSelection.of(wanted)
        return self._rows[scope]

    def row_mask(self, scope: RowScope, rows: RowSelection, mask: Tensor) -> Tensor:
        """The selected rows of an attention mask; the same mask object is gathered once, not once a layer."""
        key = (scope, id(mask))
        if key not in self._row_masks:
            self._row_masks[key] = (mask, rows.take_mask(mask))
        return self._row_masks[key][1]

    def memory(self, method: str, layer: int) -> SimpleNamespace:
        """What `method` keeps for `layer` during this generation."""
        key = (method, layer)
        if key not in self._memory:
            self._memory[key] = SimpleNamespace()
        return self._memory[key]
