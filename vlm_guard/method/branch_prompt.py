"""The prompt of a contrast branch: what `generate` was given, with tokens removed, inserted or rewritten.

`generate` hands over token ids, not text, so a branch is described by editing ids: the part of the prompt that stays
is the same tokens, exactly. Every edited row remembers where each of its tokens came from, so that what goes along
with tokens (token types) can follow.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.method.visual_tokens import visual_mask

# Tokens that only exist to wrap or separate image patches, by the names configurations and processors give them.
_MARKER_NAME = re.compile(
    r"(?:(?:image|vision|video)_(?:start|end|break|bos|eos)|(?:start|end|fake|global)_image|boi|eoi)_token_(?:id|index)"
)
_TILE_TOKEN = re.compile(r"<row_\d+_col_\d+>|<global-img>")
INSERTED = -1
RowEdit = Callable[[list[int], list[int]], tuple[list[int], list[int]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchPrompt:
    """A left-padded batch of prompts and where their tokens came from.

    Attributes:
        input_ids: [B, P'] long.
        attention_mask: [B, P'] long, 0 for padding.
        source: [B, P'] long, position of the token in the prompt given to `generate`; -1 for an inserted token.
        changed: [B] bool, whether the row differs from the prompt given to `generate` (padding apart).
    """

    input_ids: Tensor
    attention_mask: Tensor
    source: Tensor
    changed: Tensor

    @property
    def length(self) -> int:
        """P', the padded length."""
        return self.input_ids.shape[1]

    @classmethod
    def same(cls, input_ids: Tensor, attention_mask: Tensor) -> "BranchPrompt":
        """The prompt as it was given."""
        source = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        changed = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return cls(input_ids=input_ids, attention_mask=attention_mask, source=source, changed=changed)

    @classmethod
    def from_rows(
        cls, rows: Sequence[tuple[list[int], list[int]]], changed: list[bool], pad_id: int, device: torch.device
    ) -> "BranchPrompt":
        """Left-padded rows.

        Args:
            rows: per row its token ids and their positions in the given prompt (-1: inserted).
            changed: per row whether it differs from the given prompt.
            pad_id: id to pad with.
            device: where the tensors go.

        Raises:
            ValueError: a row has no token left.
        """
        if any(not ids for ids, _ in rows):
            raise ValueError("nothing is left of a prompt without its image; give the prompt some text")
        longest = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
        source = torch.full((len(rows), longest), INSERTED, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for row, (ids, places) in enumerate(rows):
            input_ids[row, longest - len(ids) :] = torch.tensor(ids, dtype=torch.long)
            source[row, longest - len(ids) :] = torch.tensor(places, dtype=torch.long)
            mask[row, longest - len(ids) :] = 1
        return cls(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            source=source.to(device),
            changed=torch.tensor(changed, dtype=torch.bool, device=device),
        )

    def follow(self, along: Tensor) -> Tensor:
        """[B, P'] values that go along with tokens (token types); 0 for inserted tokens and padding."""
        moved = along.gather(1, self.source.clamp_min(0))
        return torch.where((self.source >= 0) & self.attention_mask.bool(), moved, 0)

    def follow_sight(self, sight: Tensor) -> Tensor:
        """[B, P', ...] what tokens see of the images, from [B, P, ...]; an inserted one as the one before it.

        Padding, and a token inserted before all others, sees nothing.
        """
        place = torch.arange(self.length, device=self.source.device).expand_as(self.source)
        before = torch.where(self.source >= 0, place, -1).cummax(-1).values
        rows = self.source.gather(1, before.clamp_min(0)).clamp_min(0).to(sight.device)
        extra = [1] * (sight.dim() - 2)
        moved = sight.gather(1, rows.view(*rows.shape, *extra).expand(-1, -1, *sight.shape[2:]))
        seeing = ((before >= 0) & self.attention_mask.bool()).to(sight.device)
        return torch.where(seeing.view(*seeing.shape, *extra), moved, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenPrompt:
    """The prompt that `generate` was given, and the edits that make a branch's prompt of it.

    Attributes:
        input_ids: [B, P] long. attention_mask: [B, P] long, 0 for padding (on either side).
        visual_token_ids: ids that stand for patches.
        pad_id: an id to pad with that is not visual.
    """

    input_ids: Tensor
    attention_mask: Tensor
    visual_token_ids: tuple[int, ...]
    pad_id: int

    @property
    def has_image(self) -> Tensor:
        """[B] bool, which rows have a visual token."""
        return visual_mask(self.input_ids, self.visual_token_ids).any(-1)

    def same(self) -> BranchPrompt:
        """The prompt as it was given."""
        return BranchPrompt.same(self.input_ids, self.attention_mask)

    def edited(self, edit: RowEdit) -> BranchPrompt:
        """Every row's real tokens passed through `edit(ids, positions)`, and padded again on the left."""
        rows, changed = [], []
        for ids, real in zip(self.input_ids.tolist(), self.attention_mask.bool().tolist()):
            places = [place for place, is_real in enumerate(real) if is_real]
            before = [ids[place] for place in places]
            after = edit(before, places)
            rows.append(after)
            changed.append(after[0] != before)
        return BranchPrompt.from_rows(rows, changed, self.pad_id, self.input_ids.device)

    def without_images(self, markers: Iterable[int]) -> BranchPrompt:
        """The text alone: visual tokens and the markers around and between them are cut out (PAI, M3ID)."""
        removed = {*self.visual_token_ids, *markers}

        def cut(ids: list[int], places: list[int]) -> tuple[list[int], list[int]]:
            if not any(token in self.visual_token_ids for token in ids):
                return ids, places
            kept = [(token, place) for token, place in zip(ids, places) if token not in removed]
            return [token for token, _ in kept], [place for _, place in kept]

        return self.edited(cut)

    def with_rewritten_text(self, tokenizer: Any, rewrite: Callable[[str], str]) -> BranchPrompt:
        """Every stretch of ordinary text passed through `rewrite`; stretches that it leaves alone keep their ids.

        A stretch ends at special tokens of `tokenizer` and at visual tokens, which are never touched.
        """
        stops = {*self.visual_token_ids, *tokenizer.all_special_ids}

        def rewrite_row(ids: list[int], places: list[int]) -> tuple[list[int], list[int]]:
            new_ids: list[int] = []
            new_places: list[int] = []
            start = 0
            while start < len(ids):
                stop = next((i for i in range(start, len(ids)) if ids[i] in stops), len(ids))
                if stop > start:
                    tokens, kept = _rewrite_stretch(ids[start:stop], places[start:stop], tokenizer, rewrite)
                    new_ids, new_places = new_ids + tokens, new_places + kept
                new_ids, new_places = new_ids + ids[stop : stop + 1], new_places + places[stop : stop + 1]
                start = stop + 1
            return new_ids, new_places

        return self.edited(rewrite_row)


def _rewrite_stretch(
    ids: list[int], places: list[int], tokenizer: Any, rewrite: Callable[[str], str]
) -> tuple[list[int], list[int]]:
    """The tokens of a rewritten stretch; those it shares with the old one at both ends keep their place."""
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    new_text = rewrite(text)
    if new_text == text:
        return ids, places
    new = tokenizer.encode(new_text, add_special_tokens=False)
    shorter = min(len(ids), len(new))
    front = next((i for i in range(shorter) if ids[i] != new[i]), shorter)
    back = next((i for i in range(shorter - front) if ids[-1 - i] != new[-1 - i]), shorter - front)
    inserted = [INSERTED] * (len(new) - front - back)
    return new, places[:front] + inserted + (places[len(places) - back :] if back else [])


def first_visual(ids: Sequence[int], visual_token_ids: Sequence[int], markers: Iterable[int] = ()) -> int | None:
    """Index where the first image begins, its opening markers included; None without an image."""
    opening = set(markers)
    for index, token in enumerate(ids):
        if token in visual_token_ids:
            while index and ids[index - 1] in opening:
                index -= 1
            return index
    return None


def image_markers(model: Any, processor: Any) -> frozenset[int]:
    """Ids that only wrap or separate image patches: start, end, break and tile tokens of this model.

    They are found by the names that configurations and processors of transformers give them (`vision_start_token_id`,
    `boi_token_index`, `image_break_token_id`, ...), and tile tokens by their text.
    """
    found: set[int] = set()
    for owner in (model.config, processor):
        for name in dir(owner) if owner is not None else ():
            if _MARKER_NAME.fullmatch(name):
                value = getattr(owner, name, None)
                found.update([value] if isinstance(value, int) else [])
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None and hasattr(tokenizer, "get_added_vocab"):
        found.update(value for text, value in tokenizer.get_added_vocab().items() if _TILE_TOKEN.fullmatch(text))
    return frozenset(found)
