"""Batches for both stages: pictures with patch labels, and pictures with packed text.

The text of one picture is one sequence: the prefix ``<s>USER: <image>`` and behind it several exchanges that all attend
to the prefix but not to each other, each starting at the position after the prefix. So a picture is encoded once for
all its questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from vlm_guard.eval.scenes.categories import NAMES
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.training.model import PATCHES
from vlm_guard.eval.training.questions import Exchange, exchanges
from vlm_guard.eval.training.recipe import Recipe
from vlm_guard.eval.training.scene_store import SceneStore
from vlm_guard.eval.training.tokenizer import BOS, EOS, IMAGE, PAD, category_tokens, encode

WEIGHTS = {"caption": 1.0, "short": 1.0, "side": 1.5, "yes_no": 2.0}
"""Weight of an answer's tokens by the kind of its exchange."""


@dataclass(kw_only=True)
class Batch:
    """Tensors of one step.

    Attributes:
        pixels: uint8 (B, 96, 96, 3).
        patches: int64 (B, 64), 0 or category index plus one.
    """

    pixels: torch.Tensor
    patches: torch.Tensor

    def to(self, device: torch.device) -> Self:
        """The batch on another device."""
        return type(self)(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


@dataclass(kw_only=True)
class TextBatch(Batch):
    """Tensors of one step of the joint stage, whose pictures have text.

    Attributes:
        ids: int64 (B, N) token ids; image positions hold the image token.
        labels: int64 (B, N), -100 where nothing is learned.
        weights: float32 (B, N), weight of each label.
        blocks: int64 (B, N): 0 for the prefix, 1... for exchanges, -1 for padding.
        positions: int64 (B, N).
        hidden: bool (B,), pictures hidden from the exchanges.
        presence: float32 (B, N): at a category's word in a yes/no question 1 if it is there and 0 if not, -1 elsewhere.
        side: float32 (B, N): at the word of a category of which there is one 1 if it is on the left and 0 if on the
            right, -1 elsewhere.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    blocks: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    presence: torch.Tensor
    side: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Words:
    """What text is made with.

    Attributes:
        tokenizer: the tokenizer.
        frequency: int64 (80,), number of scenes with each category.
        categories: the categories' tokens.
        prefix: the tokens in front of a picture.
    """

    tokenizer: PreTrainedTokenizerFast
    frequency: np.ndarray
    categories: frozenset[int]
    prefix: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, store: SceneStore) -> _Words:
        """Of the text about a store's scenes."""
        return cls(
            tokenizer=tokenizer,
            frequency=category_frequency(store),
            categories=frozenset(category_tokens(tokenizer)),
            prefix=[BOS, *encode(tokenizer, "USER: ")],
        )


def category_frequency(store: SceneStore) -> np.ndarray:
    """Number of scenes with each category, int64 (80,)."""
    counts = np.zeros(len(NAMES), np.int64)
    categories = store.objects[:, :, 0]
    for category in range(len(NAMES)):
        counts[category] = int((categories == category).any(1).sum())
    return counts


class SceneBatches(IterableDataset):
    """Endless batches over a store, in a seeded order; with text unless ``tokenizer`` is None."""

    def __init__(
        self, store: SceneStore, recipe: Recipe, batch: int, stream: int, tokenizer: PreTrainedTokenizerFast | None
    ) -> None:
        super().__init__()
        self.store, self.recipe, self.batch, self.stream = store, recipe, batch, stream
        self.words = None if tokenizer is None else _Words.of(tokenizer, store)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        seed = (self.recipe.seed, self.stream, info.id if info else 0)
        order, draws = np.random.default_rng(seed), Draws(*seed)
        while True:
            places = order.permutation(len(self.store))
            for start in range(0, len(places) - self.batch + 1, self.batch):
                yield self._batch(np.sort(places[start : start + self.batch]), draws)

    def _batch(self, places: np.ndarray, draws: Draws) -> Batch:
        pixels, patches = self.store.pixels[places], self.store.patches[places].astype(np.int64)
        mirrored = np.array([draws.chance(50) for _ in places])
        pixels[mirrored] = pixels[mirrored][:, :, ::-1]
        patches[mirrored] = patches[mirrored][:, :, ::-1]
        pictures = Batch(
            pixels=torch.from_numpy(np.ascontiguousarray(pixels)),
            patches=torch.from_numpy(patches.reshape(len(places), PATCHES)),
        )
        if self.words is None:
            return pictures
        return TextBatch(**vars(pictures), **self._text(self.words, places, mirrored, draws))

    def _tokens(
        self, words: _Words, place: int, mirrored: bool, draws: Draws
    ) -> list[tuple[list[int], list[int], Exchange]]:
        items = exchanges(
            draws,
            int(self.store.scene_types[place]),
            self.store.objects_of(place, mirrored),
            words.frequency,
            self.recipe.presence_pairs,
            self.recipe.rare_absent,
        )
        questions = words.tokenizer([f"\n{item.question} ASSISTANT:" for item in items], add_special_tokens=False)
        answers = words.tokenizer([f" {item.answer}" for item in items], add_special_tokens=False)
        return [
            (question, [*answer, EOS], item)
            for question, answer, item in zip(questions.input_ids, answers.input_ids, items)
        ]

    def _text(self, words: _Words, places: np.ndarray, mirrored: np.ndarray, draws: Draws) -> dict[str, torch.Tensor]:
        """The tensors of a `TextBatch` beside those of its pictures."""
        rows = [self._tokens(words, int(p), bool(m), draws) for p, m in zip(places, mirrored)]
        before, start = len(words.prefix), len(words.prefix) + PATCHES
        length = start + max(sum(len(item[0]) + len(item[1]) for item in row) for row in rows)
        count = len(rows)
        ids = np.full((count, length), PAD, np.int64)
        labels = np.full((count, length), -100, np.int64)
        weights = np.zeros((count, length), np.float32)
        blocks = np.full((count, length), -1, np.int64)
        positions = np.zeros((count, length), np.int64)
        presence = np.full((count, length), -1, np.float32)
        side = np.full((count, length), -1, np.float32)
        hidden = np.array([draws.below(1000) < 1000 * self.recipe.image_drop for _ in rows])
        ids[:, :before], ids[:, before:start] = words.prefix, IMAGE
        blocks[:, :start], positions[:, :start] = 0, np.arange(start)
        for row, items in enumerate(rows):
            # Without the image the text follows the prefix at once: its positions move up.
            first, at = before if hidden[row] else start, start
            for number, (question, answer, item) in enumerate(items, start=1):
                end = at + len(question) + len(answer)
                ids[row, at:end] = question + answer
                blocks[row, at:end] = number
                positions[row, at:end] = np.arange(first, first + end - at)
                if item.blind or not hidden[row]:
                    labels[row, at + len(question) : end] = answer
                    weights[row, at + len(question) : end] = WEIGHTS[item.kind]
                if item.kind in ("yes_no", "side") and not hidden[row]:
                    # The first category token is the one asked about: "hot" of a hot dog comes before "dog".
                    word = next((token for token in question if token in words.categories), None)
                    asked = [at + place for place, token in enumerate(question) if token == word]
                    if item.kind == "yes_no":
                        presence[row, asked] = item.answer == "Yes"
                    if item.side is not None:
                        side[row, asked] = item.side == "left"
                at = end
        made = {"ids": ids, "labels": labels, "weights": weights, "blocks": blocks, "positions": positions}
        made |= {"hidden": hidden, "presence": presence, "side": side}
        return {name: torch.from_numpy(value) for name, value in made.items()}


def attention_mask(blocks: torch.Tensor, hidden: torch.Tensor, prefix: int) -> torch.Tensor:
    """Bool (B, 1, N, N), True where a row may look: causal, to the prefix and within its own exchange.

    Args:
        blocks: int64 (B, N) as in :class:`Batch`.
        hidden: bool (B,), rows whose exchanges may not look at the picture.
        prefix: Number of tokens before the first visual token.
    """
    length = blocks.shape[1]
    allowed = (blocks[:, None, :] == 0) | (blocks[:, :, None] == blocks[:, None, :])
    allowed &= torch.ones(length, length, dtype=torch.bool, device=blocks.device).tril()
    blind = hidden[:, None, None] & (blocks[:, :, None] > 0)
    allowed[:, :, prefix : prefix + PATCHES] &= ~blind
    return allowed[:, None]
