"""Which tokens of the question carry content, and the prompt with another question.

Content words are found by rules: every word that is not on a short list of English function words. A function of one's
own, from text to character spans, can replace the rules.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from vlm_guard.method import INSERTED, BranchPrompt, GivenPrompt, question_range, token_spans

ContentWordFinder = Callable[[str], list[tuple[int, int]]]

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
# Function words: articles, pronouns, auxiliaries, prepositions, conjunctions, question words, and the courtesies and
# answer words of instructions. Written for this project.
_LISTED = """
    a an the this that these those some any each every either neither no not none both all such same other another i
    you he she it we they me him her us them my your his its our their mine yours hers ours theirs myself yourself
    himself herself itself ourselves themselves one ones someone anyone everyone something anything everything
    nothing am is are was were be been being do does did doing done have has had having can could may might must
    shall should will would ought isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't can't
    couldn't won't wouldn't shouldn't of in on at by for from to into onto with without within about above across
    after against along among around as before behind below beneath beside between beyond despite down during except
    inside like near off out outside over past per since than through throughout till toward towards under until up
    upon via and or but nor so yet if because although though while whereas whether unless when where who whom whose
    which what why how there here then just also too very only even please yes ok okay user assistant human system
"""
_FUNCTION_WORDS = frozenset(_LISTED.split())


def content_words(text: str) -> list[tuple[int, int]]:
    """Character spans of the content words of `text` (nouns, verbs, adjectives, names, numbers, ...), by rules."""
    return [match.span() for match in _WORD.finditer(text) if match[0].lower().replace("’", "'") not in _FUNCTION_WORDS]


def without_leading_space(ids: Sequence[int], start: int, stop: int, tokenizer: Any) -> int:
    """The first index in `start` to `stop` whose token is more than white space; `start` where none is.

    Between the image and the question, chat formats put a line break, which is no part of the question.
    """
    if tokenizer is None:
        return start
    words = (index for index in range(start, stop) if tokenizer.decode([ids[index]]).strip())
    return next(words, start)


def content_flags(ids: Sequence[int], tokenizer: Any, find: ContentWordFinder) -> list[bool]:
    """Which tokens of a question `ids` belong to a content word; all of them when it has none."""
    words = find(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    flags = [any(first < stop and start < last for start, stop in words) for first, last in token_spans(ids, tokenizer)]
    return flags if any(flags) else [True] * len(flags)


def with_question(
    prompt: GivenPrompt, tokenizer: Any, opening: str | None, rewrite: Callable[[str], str], method: str
) -> BranchPrompt:
    """The prompt with the question of every row that has an image passed through `rewrite`.

    Args:
        prompt: the prompt as it was given.
        tokenizer: of the model.
        opening: what follows the question, see `answer_opening`.
        rewrite: from the question to another text; the space around it stays.
        method: who asks, for the error message.

    Raises:
        ValueError: no text follows the image of a row.
    """

    def edit(ids: list[int], places: list[int]) -> tuple[list[int], list[int]]:
        if not any(token in prompt.visual_token_ids for token in ids):
            return ids, places
        start, stop = question_range(ids, prompt.visual_token_ids, tokenizer, opening)
        text = tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False)
        if not text.strip():
            raise ValueError(f"{method} rewrites the question behind the image, and this prompt has none there")
        front, back = len(text) - len(text.lstrip()), len(text.rstrip())
        changed = text[:front] + rewrite(text.strip()) + text[back:]
        new = tokenizer.encode(changed, add_special_tokens=False)
        return ids[:start] + new + ids[stop:], places[:start] + [INSERTED] * len(new) + places[stop:]

    return prompt.edited(edit)
