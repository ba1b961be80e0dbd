"""Everything a guard knows about one generation. A new one is made for every call, so nothing is left over."""

import weakref
from collections.abc import Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method.base import RowScope, Sign
from vlm_guard.method.visual_tokens import RowSelection, visual_mask, wanted_rows

if TYPE_CHECKING:
    from vlm_guard.method.attention_calls import BoundMethod
    from vlm_guard.method.two_streams import TwoStreams

# [0, 0] bool: of a generation that has read nothing yet.
_NOTHING = torch.zeros(0, 0, dtype=torch.bool)


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
        if isinstance(attention_mask, Tensor) and attention_mask.shape == input_ids.shape:
            real = attention_mask.to(visual.device).bool()
        else:
            real = torch.ones_like(visual)
        return cls(visual=visual, real=real, input_ids=input_ids)

    @property
    def length(self) -> int:
        """P, padding included."""
        return self.visual.shape[1]

    def begins(self, input_ids: Tensor) -> bool:
        """Whether the tokens [N, Q] of a forward pass without earlier ones are this prompt, or begin with it.

        N may be a multiple of B (beams, returned sequences). Where the prompt's ids are unknown, any tokens are.
        """
        if self.input_ids is None:
            return True
        repeats, rest = divmod(input_ids.shape[0], self.input_ids.shape[0])
        length = min(self.length, input_ids.shape[1])
        if rest or not repeats or not length:
            return False
        own = self.input_ids[:, :length].repeat_interleave(repeats, 0)
        return torch.equal(own.to(input_ids.device), input_ids[:, :length])

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
        visual: [B, T] bool, visual tokens of the whole prompt if known, and of everything read so far; [0, 0] before.
        real: [B, T] bool, False for padding.
        prompt: the whole prompt when `generate` told it, else None. Then what is read in passes over several tokens
            is the prompt, and single tokens behind it are the answer.
        active: whether any row has a visual token; if not, the guard does nothing.
        reading: whether the current forward pass reads prompt tokens.
        offset: key position of the first current query.
        length: number of tokens read so far.
        unseen: number of first tokens that were read while nothing was edited, as no picture was known.
        attended: layers whose attention has asked for the edits of the prompt.
        edited: parts of layers whose output was handed to a method while the prompt was read: its name, layer, part.
        findings: what methods found out apart from any decoder layer, by their name.
        steady_edits: per layer and processors, the edit of every decode step, where no method changes it (see
            `Method.steady`).
        side: the contrast branch these rows are; "positive" without one.
        compiled: whether the decode steps will be compiled: edits then keep their structure from prompt to prompt.
        only: the one method whose attention processor runs in a pass that this method makes on its own, or None.
        streams: the prompt and the same without its image, where whoever runs the model reads both side by side.
    """

    def __init__(
        self, visual_token_ids: tuple[int, ...], prompt: PromptTokens | None = None, side: Sign = "positive"
    ) -> None:
        self.visual_token_ids = visual_token_ids
        self.prompt = prompt
        self.side = side
        self.only: str | None = None
        self.streams: TwoStreams | None = None
        self.compiled = False
        self.visual = _NOTHING
        self.real = _NOTHING
        self.active = False
        self.reading = True
        self.offset = 0
        self.length = 0
        self.unseen = 0
        self.attended: set[int] = set()
        self.edited: set[tuple[str, int, str]] = set()
        self.findings: dict[str, SimpleNamespace] = {}
        self._told_length: int | None = None
        self.cache: weakref.ref | None = None
        self._memory: dict[tuple[str, int], SimpleNamespace] = {}
        self.steady_edits: dict[tuple[int, tuple[BoundMethod, ...]], AttentionEdit | None] = {}
        self._rows: dict[tuple[RowScope, int], RowSelection | None] = {}
        self._row_masks: dict[tuple[int, int], tuple[RowSelection, Tensor, Tensor]] = {}
        # The visual mask that was looked at, and whether each of its rows has a visual token.
        self._looked_at: tuple[Tensor, bool] | None = None

    @property
    def every_row_has_image(self) -> bool:
        """Whether each row has a visual token; the device is asked once a prompt."""
        if self._looked_at is None or self._looked_at[0] is not self.visual:
            self._looked_at = self.visual, bool(self.visual.any(-1).all())
        return self._looked_at[1]

    @property
    def prompt_length(self) -> int | None:
        """Length of the whole prompt: as `generate` told it, or of what has been read as prompt so far."""
        return self._told_length if self.prompt is None else self.prompt.length

    def continue_with(self, offset: int) -> None:
        """One more token of the answer is decoded at key position `offset`."""
        self.reading, self.offset, self.length = False, offset, offset + 1

    def read(self, input_ids: Tensor, attention_mask: Any, offset: int, cache: Any) -> None:
        """Take in the tokens of a forward pass: `input_ids` [B, Q] at key positions from `offset` on."""
        if cache is not None and self.cache is None:
            self.cache = weakref.ref(cache)
        self._rows.clear()
        self.steady_edits.clear()
        self._row_masks.clear()
        self.offset = offset
        total = self.length = offset + input_ids.shape[1]
        answering = self._told_length is not None and offset >= self._told_length and input_ids.shape[1] == 1
        if self.prompt is None:
            if not answering:
                self._told_length = total
            self._extend(input_ids, attention_mask, total, answering)
        else:
            # A model may generate a placeholder id, but only those of the prompt stand for an image.
            prompt = self.prompt.expanded(input_ids.shape[0])
            beyond = max(0, total - prompt.length)
            self.visual = torch.nn.functional.pad(prompt.visual, (0, beyond))
            self.real = torch.nn.functional.pad(prompt.real, (0, beyond), value=True)
        self.reading = not answering if self.prompt is None else offset < self.prompt.length
        self.active = self.active or bool(self.visual.any())
        if not self.active:
            self.unseen = total

    def _extend(self, input_ids: Tensor, attention_mask: Any, total: int, answering: bool) -> None:
        """Without a known prompt, take in what these tokens say of themselves; a generated id stands for no picture."""
        current = visual_mask(input_ids, self.visual_token_ids)
        if answering:
            current = torch.zeros_like(current)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            real = attention_mask[:, self.offset : total].bool()
        else:
            real = torch.ones_like(current)
        if self.offset and self.visual is not _NOTHING:
            between = max(0, self.offset - self.visual.shape[1])
            earlier = torch.nn.functional.pad(self.visual[:, : self.offset], (0, between))
            current = torch.cat((earlier, current), 1)
            known = torch.nn.functional.pad(self.real[:, : self.offset], (0, between), value=True)
            real = torch.cat((known, real), 1)
        self.visual, self.real = current, real

    def cropped(self, length: int, keep: Collection[str]) -> "GenerationState":
        """The state of the same cache, cut to its first `length` tokens: another prompt that begins alike.

        Args:
            length: how many tokens are left.
            keep: names of the methods whose findings about these tokens still hold.
        """
        state = GenerationState(self.visual_token_ids, side=self.side)
        state.cache, state.length, state.unseen = self.cache, length, min(length, self.unseen)
        state.visual, state.real = self.visual[:, :length], self.real[:, :length]
        state.active, state._told_length = bool(state.visual.any()), length
        state._memory = {key: kept for key, kept in self._memory.items() if key[0] in keep}
        return state

    def rows(self, scope: RowScope, count: int) -> RowSelection | None:
        """The rows of the current queries (Q = `count`) that `scope` covers; None when there are none."""
        key = (scope, count)
        if key not in self._rows:
            first = self.offset + self.skipped(count)
            real = self.real[:, first : first + count]
            length = self.prompt_length if self.prompt is not None or not self.reading else None
            wanted = wanted_rows(scope, self.visual, first, count, length, real)
            self._rows[key] = RowSelection.of(wanted)
        return self._rows[key]

    def skipped(self, count: int) -> int:
        """How many first tokens of the current pass a layer with `count` query rows leaves out.

        Layers that read an earlier layer's keys and values (Gemma 4) compute only the rows of a prompt whose logits are
        wanted, which are its last.
        """
        return max(0, self.length - self.offset - count) if self.reading else 0

    def row_mask(self, rows: RowSelection, mask: Tensor) -> Tensor:
        """The selected rows of an attention mask; the same mask object is gathered once, not once a layer."""
        key = (id(rows), id(mask))
        if key not in self._row_masks:
            self._row_masks[key] = (rows, mask, rows.take_mask(mask))
        return self._row_masks[key][2]

    def remembers(self, method: str) -> bool:
        """Whether `method` has kept anything during this generation."""
        return any(name == method and vars(kept) for (name, _), kept in self._memory.items())

    def memory(self, method: str, layer: int) -> SimpleNamespace:
        """What `method` keeps for `layer` during this generation."""
        key = (method, layer)
        if key not in self._memory:
            self._memory[key] = SimpleNamespace()
        return self._memory[key]
