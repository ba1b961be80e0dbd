"""From generated tokens to the words a reader sees."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_guard.grounding.answer_text import token_spans

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class Word:
    """One word of an answer.

    Attributes:
        text: the word with the punctuation that sticks to it.
        start: first character in the answer's text. end: the character after its last.
        steps: the generated tokens that spell it, by number; never empty.
    """

    text: str
    start: int
    end: int
    steps: tuple[int, ...]


def split_words(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, tuple[Word, ...]]:
    """The answer's text and its words, each with the tokens that spell it."""
    text, spans = token_spans(tokenizer, token_ids)
    words = []
    for match in _WORD.finditer(text):
        steps = tuple(step for step, (start, end) in enumerate(spans) if start < match.end() and end > match.start())
        if steps:
            words.append(Word(text=match.group(), start=match.start(), end=match.end(), steps=steps))
    return text, tuple(words)
