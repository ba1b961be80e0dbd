"""Prompts of the zoo: random text ids and random images, both a function of their position only."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

# The first ids of every zoo vocabulary are special; text is drawn from the rest.
PAD, BOS, EOS, IMAGE, VIDEO, IMAGE_START, IMAGE_END, IMAGE_BREAK, SPECIAL_A, SPECIAL_B = range(10)
SPECIAL_IDS = tuple(range(10))
VOCABULARY = 200

FIRST_VIDEO = 10


def generator(*key: object) -> torch.Generator:
    """A CPU generator whose seed is a checksum of ``key`` (stable between processes)."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row: ``text_before`` ids, the images, then the videos, ``between`` text ids between them, ``text_after``.

    ``content`` names what the ids and pixels are drawn from; None means the row's place in the batch.  The same
    prompt with ``content`` set gives the same row in any batch.
    """

    text_before: int = 4
    images: int = 1
    text_after: int = 5
    between: int = 2
    videos: int = 0
    content: int | None = None

    def __post_init__(self) -> None:
        if (
            min(self.text_before, self.text_after, self.between) < 0
            or not 0 <= self.images <= 4
            or not 0 <= self.videos <= 2
        ):
            raise ValueError(f"text lengths must be >= 0, images 0..4 and videos 0..2, got {self}")


# Rows of unequal length with one and two images; as `content` is set, each can also run alone.
UNEQUAL_PROMPTS = (
    Prompt(text_before=3, images=1, text_after=4, content=0),
    Prompt(text_before=9, images=2, text_after=6, between=3, content=1),
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image or video of one row; ``variant`` (0 or 1) selects one of the family's two sizes."""

    seed: int
    content: int
    index: int
    images_in_row: int

    @property
    def variant(self) -> int:
        return (self.content + self.index) % 2

    def pixels(self, *shape: int) -> torch.Tensor:
        """Standard normal float32 pixels, the same for the same image and shape."""
        return torch.randn(shape, generator=generator("pixels", self.seed, self.content, self.index))


def text_ids(seed: int, content: int, part: int, count: int) -> list[int]:
    """``count`` ids of ordinary text for one stretch of one row."""
    source = generator("text", seed, content, part)
    return torch.randint(len(SPECIAL_IDS), VOCABULARY, (count,), generator=source).tolist()


def row_images(prompt: Prompt, row: int, seed: int) -> list[Image]:
    content = row if prompt.content is None else prompt.content
    return [
        Image(seed=seed, content=content, index=index, images_in_row=prompt.images) for index in range(prompt.images)
    ]


def row_videos(prompt: Prompt, row: int, seed: int) -> list[Image]:
    """As ``row_images``, with indices from ``FIRST_VIDEO``, so that no video has the pixels of an image."""
    content = row if prompt.content is None else prompt.content
    indices = range(FIRST_VIDEO, FIRST_VIDEO + prompt.videos)
    return [Image(seed=seed, content=content, index=index, images_in_row=prompt.images) for index in indices]


def row_ids(prompt: Prompt, row: int, seed: int, runs: list[list[int]]) -> list[int]:
    """BOS, text, the images' ``runs`` of ids with text between them, text."""
    content = row if prompt.content is None else prompt.content
    ids = [BOS, *text_ids(seed, content, 0, prompt.text_before)]
    for index, run in enumerate(runs):
        if index:
            ids += text_ids(seed, content, index, prompt.between)
        ids += run
    return ids + text_ids(seed, content, 99, prompt.text_after)


def pad(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` [B, S], int64, padded with PAD on the given side."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {side!r}")
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, place] = torch.tensor(tokens)
        mask[row, place] = 1
    return ids, mask
