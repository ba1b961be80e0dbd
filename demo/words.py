"""From generated tokens to the words a reader sees."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def token_spans(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of generated tokens, and which of its characters each token added.

    Tokens are decoded together, ever longer, because the text of a token depends on the ones before it. A character
    whose bytes are spread over several tokens belongs to the one that completes it.

    Returns:
        The text without leading blanks and special tokens, and one (start, end) per token; empty spans for tokens
        that add nothing.
    """
    whole = decode(tokenizer, token_ids)
    ends = []
    for count in range(1, len(token_ids) + 1):
        so_far = decode(tokenizer, token_ids[:count])
        shared = 0
        for mine, final in zip(so_far, whole):
            if mine != final:
                break
            shared += 1
        ends.append(shared)
    lead = len(whole) - len(whole.lstrip())
    spans, before = [], 0
    for end in ends:
        end = max(end, before)
        spans.append((max(0, before - lead), max(0, end - lead)))
        before = end
    return whole.strip(), spans


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of generated tokens, special tokens left out, blanks as generated."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def split_words(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, tuple[Word, ...]]:
    """The answer's text and its words, each with the tokens that spell it."""
    text, spans = token_spans(tokenizer, token_ids)
    words = []
    for match in _WORD.finditer(text):
        steps = tuple(step for step, (start, end) in enumerate(spans) if start < match.end() and end > match.start())
        if steps:
            words.append(Word(text=match.group(), start=match.start(), end=match.end(), steps=steps))
    return text, tuple(words)
