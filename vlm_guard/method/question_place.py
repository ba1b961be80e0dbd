"""Where the question stands in a prompt: the ordinary text behind the last visual token.

Special tokens do not belong to it, nor what the chat format puts there to make the model answer (" ASSISTANT:").
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any


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


def token_spans(ids: Sequence[int], tokenizer: Any) -> list[tuple[int, int]]:
    """Character span of each token in the decoded text of `ids`."""
    ends = [len(tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)) for count in range(len(ids) + 1)]
    return list(pairwise(ends))
