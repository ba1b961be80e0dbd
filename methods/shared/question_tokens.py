"""Where the question stands in a prompt, and which of its tokens carry content.

The question is the ordinary text after the last visual token, without special tokens and without what the chat format
puts there to make the model answer (" ASSISTANT:"). Content words are found by rules: every word that is not on a short
list of English function words. A function of one's own, from text to character spans, can replace the rules.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from vlm_guard.method import INSERTED, BranchPrompt, GivenPrompt

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


def answer_opening(processor: Any) -> str | None:
    """What the processor's chat template puts after the question to make the model answer; None without a template."""
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    chat = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    asked = processor.apply_chat_template(chat, add_generation_prompt=False, tokenize=False)
    opened = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return opened[len(asked) :] if opened.startswith(asked) else None


def question_range(
    ids: Sequence[int], visual_token_ids: Sequence[int], tokenizer: Any = None, opening: str | None = None
) -> tuple[int, int]:
    """First index and end of the question in the ids of one unpadded row; equal when nothing follows the image.

    Args:
        ids: token ids of the row.
        visual_token_ids: ids that stand for patches.
        tokenizer: knows special tokens and their text; None takes everything after the image.
        opening: what follows the question, see `answer_opening`.
    """
    visual = [index for index, token in enumerate(ids) if token in visual_token_ids]
    start = visual[-1] + 1 if visual else 0
    if tokenizer is None:
        return start, len(ids)
    special = set(tokenizer.all_special_ids)
    while start < len(ids) and ids[start] in special:
        start += 1
    stop = next((index for index in range(start, len(ids)) if ids[index] in special), len(ids))
    spans = token_spans(ids[start:stop], tokenizer)
    text = tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False).rstrip()
    closing = (opening or "").strip()
    if closing and text.endswith(closing):
        end = len(text) - len(closing)
        stop = start + sum(1 for first, _ in spans if first < len(text[:end].rstrip()))
    return start, stop


def without_leading_space(ids: Sequence[int], start: int, stop: int, tokenizer: Any) -> int:
    """The first index in `start` to `stop` whose token is more than white space; `start` where none is.

    Between the image and the question, chat formats put a line break, which is no part of the question.
    """
    if tokenizer is None:
        return start
    words = (index for index in range(start, stop) if tokenizer.decode([ids[index]]).strip())
    return next(words, start)


def token_spans(ids: Sequence[int], tokenizer: Any) -> list[tuple[int, int]]:
    """Character span of each token in the decoded text of `ids`."""
    ends = [len(tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)) for count in range(len(ids) + 1)]
    return list(pairwise(ends))


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
