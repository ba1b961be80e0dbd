"""Everything a guard knows about one generation. A new one is made for every call, so nothing is left over."""

import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method.base import RowScope, Sign
from vlm_guard.method.visual_tokens import RowSelection, visual_mask, wanted_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTokens:
    """A whole prompt as `generate` was given it.

    Attributes:
        visual: [B, P] bool, visual tokens.
        real: [B, P] bool, False for padding.
        input_ids: [B, P] the ids, where they are known.
    """

    visual: Tensor
    real: Tensor
    input_ids: Tensor | None = None

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor | None, visual_token_ids: tuple[int, ...]) -> "PromptTokens":
        """From `input_ids` [B, P] and the optional 2-D attention mask."""
        visual = visual_mask(input_ids, visual_token_ids)
        known = isinstance(attention_mask, Tensor) and attention_mask.shape == input_ids.shape
        real = attention_mask.to(visual.device).bool() if known else torch.ones_like(visual)
        return cls(visual=visual, real=real, input_ids=input_ids)

    @property
    def length(self) -> int:
        """P, padding included."""
        return self.visual.shape[1]

    def expanded(self, batch: int) -> "PromptTokens":
        """One row for each beam or returned sequence, in transformers' order."""
        repeats, rest = divmod(batch, self.visual.shape[0])
        if rest:
            raise ValueError(f"a prompt of {self.visual.shape[0]} rows cannot serve a batch of {batch}")
        if repeats == 1:
            return self
        return PromptTokens(
            visual=self.visual.repeat_interleave(repeats, 0),
            real=self.real.repeat_interleave(repeats, 0),
            input_ids=None if self.input_ids is None else self.input_ids.repeat_interleave(repeats, 0),
        )


class GenerationState:
    """The visual mask of a prompt, the rows being edited now, and what the methods remember.

    Attributes:
        visual: [B, T] bool, visual tokens of the whole prompt if known, and of everything read so far.
        real: [B, T] bool, False for padding.
        prompt: the whole prompt when `generate` told it, else None.
        active: whether any row has a visual token; if not, the guard does nothing.
        reading: whether the current forward pass reads prompt tokens.
        offset: key position of the first current query.
        steady_edits: per layer, the edit of every decode step, where no method changes it (see `Method.steady`).
        side: the contrast branch these rows are; "positive" without one.
        compiled: whether the decode steps will be compiled: edits then keep their structure from prompt to prompt.
        only: the one method whose attention processor runs in a pass that this method makes on its own, or None.
    """

    def __init__(
        self, visual_token_ids: tuple[int, ...], prompt: PromptTokens | None = None, side: Sign = "positive"
    ) -> None:
        self.visual_token_ids = visual_token_ids
        self.prompt = prompt
        self.side = side
        self.only: str | None = None
        self.compiled = False
        self.visual: Tensor | None = None
        self.real: Tensor | None = None
        self.active = False
        self.reading = True
        self.offset = 0
        self.cache: weakref.ref | None = None
        self._memory: dict[tuple[str, int], SimpleNamespace] = {}
        self.steady_edits: dict[int, AttentionEdit | None] = {}
        self._rows: dict[RowScope, RowSelection | None] = {}
        self._row_masks: dict[tuple[int, int], tuple[RowSelection, Tensor, Tensor]] = {}

    @property
    def prompt_length(self) -> int | None:
        """Length of the whole prompt, if known."""
        return None if self.prompt is None else self.prompt.length

    def read(self, input_ids: Tensor, attention_mask: Any, offset: int, cache: Any) -> None:
        """Take in the tokens of a forward pass: `input_ids` [B, Q] at key positions from `offset` on."""
        if cache is not None and self.cache is None:
            self.cache = weakref.ref(cache)
        self._rows.clear()
        self.steady_edits.clear()
        self._row_masks.clear()
        self.offset = offset
        total = offset + input_ids.shape[1]
        if self.prompt is None:
            self._extend(input_ids, attention_mask, total)
        else:
            # A model may generate a placeholder id, but only those of the prompt stand for an image.
            prompt = self.prompt.expanded(input_ids.shape[0])
            beyond = max(0, total - prompt.length)
            self.visual = torch.nn.functional.pad(prompt.visual, (0, beyond))
            self.real = torch.nn.functional.pad(prompt.real, (0, beyond), value=True)
        self.reading = self.prompt is None or offset < self.prompt.length
        self.active = self.active or bool(self.visual.any())

    def _extend(self, input_ids: Tensor, attention_mask: Any, total: int) -> None:
        """Without a known prompt, every token read counts as prompt."""
        current = visual_mask(input_ids, self.visual_token_ids)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            real = attention_mask[:, self.offset : total].bool()
        else:
            real = torch.ones_like(current)
        if self.offset and self.visual is not None:
            current = torch.cat((self.visual[:, : self.offset], current), 1)
            real = torch.cat((self.real[:, : self.offset], real), 1)
        self.visual, self.real = current, real

    def rows(self, scope: RowScope, count: int) -> RowSelection | None:
        """The rows of the current queries (Q = `count`) that `scope` covers; None when there are none."""
        if scope not in self._rows:
            real = self.real[:, self.offset : self.offset + count]
            wanted = wanted_rows(scope, self.visual, self.offset, count, self.prompt_length, real)
            self._rows[scope] = RowSelection.of(wanted)
        return self._rows[scope]

    def row_mask(self, rows: RowSelection, mask: Tensor) -> Tensor:
        """The selected rows of an attention mask; the same mask object is gathered once, not once a layer."""
        key = (id(rows), id(mask))
        if key not in self._row_masks:
            self._row_masks[key] = (rows, mask, rows.take_mask(mask))
        return self._row_masks[key][2]

    def memory(self, method: str, layer: int) -> SimpleNamespace:
        """What `method` keeps for `layer` during this generation."""
        key = (method, layer)
        if key not in self._memory:
            self._memory[key] = SimpleNamespace()
        return self._memory[key]
