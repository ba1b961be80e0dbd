"""Packed text of the second stage: one sequence a picture, several exchanges behind it that do not see each other.

The same packing as the built-in model's (`vlm_guard.eval.training.batches`), with SmolLM2's chat format, one or two
pictures in front, and batches of pictures whose text is about equally long, so that little is padding. Which pictures
and which text belong to a step follows from the seed and the step's number alone, so a run can be interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlm_guard.eval.scenes.categories import NAMES, plural
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.training.batches import WEIGHTS, category_frequency
from vlm_guard.eval.training.model import PATCHES
from vlm_guard.eval.training.questions import exchanges
from vlm_guard.eval.training.scene_store import SceneStore
from vlm_guard.eval.training.smol.recipe import Recipe
from vlm_guard.smol_model.layout import AFTER_QUESTION, BEFORE_IMAGE, EOS, IMAGE_ID, PAD

_SORTED_STEPS = 4
"""Pictures of this many steps are sorted by the length of their text and dealt out again."""

_TEXT_WORD = 5_000
_ORDER_WORD = 6_000


@dataclass(kw_only=True)
class Batch:
    """Tensors of one step.

    Attributes:
        ids: int64 (B, N); positions of patches hold the image token.
        labels: int64 (B, N), -100 where nothing is learned.
        weights: float32 (B, N), weight of each label.
        blocks: int64 (B, N): 0 for the prefix with its pictures, 1... for exchanges (1 is the description), -1 padding.
        positions: int64 (B, N).
        hidden: bool (B,), pictures hidden from the exchanges.
        features: float32 (V, 64, 192), of all pictures of the batch in order.
        patches: int64 (V, 64), 0 or category index plus one; -1 throughout for an enlarged part.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    blocks: Tensor
    positions: Tensor
    hidden: Tensor
    features: Tensor
    patches: Tensor

    def allowed(self) -> Tensor:
        """Bool (B, 1, N, N), True where a row may look: causal, to the prefix and within its own exchange."""
        length = self.ids.shape[1]
        allowed = (self.blocks[:, None, :] == 0) | (self.blocks[:, :, None] == self.blocks[:, None, :])
        allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
        blind = self.hidden[:, None, None] & (self.blocks[:, :, None] > 0) & (self.ids == IMAGE_ID)[:, None, :]
        return (allowed & ~blind)[:, None]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One picture's text: token ids of questions and answers, and the kinds of the exchanges."""

    picture: int
    questions: list[list[int]]
    answers: list[list[int]]
    kinds: list[str]
    blind: list[bool]
    pictures: int
    hidden: bool

    @property
    def length(self) -> int:
        return self.pictures * PATCHES + sum(map(len, self.questions)) + sum(map(len, self.answers))


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBatches:
    """The batches of the second stage by the number of their step.

    Attributes:
        store: the pictures.
        features: float16 (N, 2, 64, 192), see `compute_features`.
        has_second: uint8 (N,).
        tokenizer: SmolLM2's with the image token.
        recipe: the run's numbers.
    """

    store: SceneStore
    features: np.ndarray
    has_second: np.ndarray
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe

    @cached_property
    def _frequency(self) -> np.ndarray:
        return category_frequency(self.store)

    @cached_property
    def _prefix(self) -> list[int]:
        ids: list[int] = self.tokenizer(BEFORE_IMAGE, add_special_tokens=False).input_ids
        return ids

    @cached_property
    def _order(self) -> list[int]:
        return Draws(self.recipe.seed, _ORDER_WORD).shuffled(range(len(self.store)))

    def step(self, number: int) -> Batch:
        """The batch of step `number`, counted from 0."""
        size = self.recipe.speak_batch
        window = number // _SORTED_STEPS
        first = window * _SORTED_STEPS * size
        rows = [self._row(picture) for picture in self._order[first : first + _SORTED_STEPS * size]]
        rows.sort(key=lambda row: row.length)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        groups = Draws(self.recipe.seed, _ORDER_WORD, window).shuffled(
            [group for group in groups if len(group) == size]
        )
        return self._packed(groups[number % _SORTED_STEPS % len(groups)])

    def _row(self, picture: int) -> _Row:
        draws = Draws(self.recipe.seed, _TEXT_WORD, picture)
        items = exchanges(
            draws,
            int(self.store.scene_types[picture]),
            self.store.objects_of(picture),
            self._frequency,
            self.recipe.presence_pairs,
            self.recipe.rare_absent,
            leading=0,
        )
        questions = self.tokenizer([f"\n{item.question}{AFTER_QUESTION}" for item in items], add_special_tokens=False)
        answers = self.tokenizer([item.answer for item in items], add_special_tokens=False)
        return _Row(
            picture=picture,
            questions=questions.input_ids,
            answers=[[*answer, EOS] for answer in answers.input_ids],
            kinds=[item.kind for item in items],
            blind=[item.blind for item in items],
            pictures=1 + int(self.has_second[picture]),
            hidden=draws.chance(self.recipe.image_drop),
        )

    def _packed(self, rows: list[_Row]) -> Batch:
        before = len(self._prefix)
        shape = (len(rows), before + max(row.length for row in rows))
        ids, labels = np.full(shape, PAD, np.int64), np.full(shape, -100, np.int64)
        blocks, positions = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
        weights = np.zeros(shape, np.float32)
        for place, row in enumerate(rows):
            at = before + row.pictures * PATCHES
            ids[place, :before], ids[place, before:at] = self._prefix, IMAGE_ID
            blocks[place, :at], positions[place, :at] = 0, np.arange(at)
            # Without the picture the text follows the prefix at once: its positions move up.
            first = before if row.hidden else at
            for number, (question, answer) in enumerate(zip(row.questions, row.answers), start=1):
                begin, end = at + len(question), at + len(question) + len(answer)
                ids[place, at:end] = question + answer
                blocks[place, at:end] = number
                positions[place, at:end] = np.arange(first, first + end - at)
                if row.blind[number - 1] or not row.hidden:
                    labels[place, begin:end] = answer
                    weights[place, begin:end] = WEIGHTS[row.kinds[number - 1]]
                at = end
        made = {"ids": ids, "labels": labels, "weights": weights, "blocks": blocks, "positions": positions}
        views = [(row.picture, part) for row in rows for part in range(row.pictures)]
        features = np.stack([self.features[picture, part] for picture, part in views]).astype(np.float32)
        named = [self.store.patches[picture].reshape(-1) if part == 0 else [-1] * PATCHES for picture, part in views]
        return Batch(
            **{name: torch.from_numpy(value) for name, value in made.items()},
            hidden=torch.tensor([row.hidden for row in rows]),
            features=torch.from_numpy(features),
            patches=torch.from_numpy(np.stack([np.asarray(item, np.int64) for item in named])),
        )


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """int64 (80, 2): the first token of every category's name behind a space, singular and plural."""
    both = [[f" {name}", f" {plural(name)}"] for name in NAMES]
    encoded = tokenizer([text for pair in both for text in pair], add_special_tokens=False).input_ids
    return torch.tensor([ids[0] for ids in encoded]).view(len(NAMES), 2)
