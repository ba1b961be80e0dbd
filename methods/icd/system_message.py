"""The system message in a prompt that is already tokens: where it stands, and the prompt with another one.

How a chat format writes it is learned from the processor's chat template, by rendering a chat with and without one. A
prompt without a template is read as the plain formats of Vicuna's kind: words, then "USER:".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_guard.method import INSERTED, token_spans

_SYSTEM, _QUESTION = "Zq system zq", "Zq question zq"
_PLAIN_USER = re.compile(r"(?:(?<=\s)|^)(?:USER|User|HUMAN|Human)\s*:")


@dataclass(frozen=True, kw_only=True)
class SystemFormat:
    """How a chat template writes a system message and what follows it.

    Attributes:
        opening: in front of the message ("<|im_start|>system" and a line break; nothing in LLaVA's format).
        closing: between the message and the user's turn; empty where the template adds a message of its own to every
            chat, so that the two cannot be told apart.
        user: how the user's turn begins.
    """

    opening: str
    closing: str
    user: str


def system_format(processor: Any) -> SystemFormat | None:
    """The format of the processor's chat template; None without a template, or where it knows no system message."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        return None
    question = {"role": "user", "content": [{"type": "text", "text": _QUESTION}]}
    system = {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]}
    try:
        with_system, without = (
            processor.apply_chat_template(chat, add_generation_prompt=False, tokenize=False)
            for chat in ([system, question], [question])
        )
    except Exception:
        return None
    bos = getattr(tokenizer, "bos_token", None) or ""
    opening, found, rest = with_system.removeprefix(bos).partition(_SYSTEM)
    between, asked, _ = rest.partition(_QUESTION)
    before = without.partition(_QUESTION)[0]
    if not found or not asked:
        return None
    shared = next((n for n in range(min(len(between), len(before)), 0, -1) if between[-n:] == before[-n:]), 0)
    cut = len(between) - shared
    return SystemFormat(opening=opening, closing=between[:cut], user=between[cut:])


def with_system_message(
    ids: Sequence[int], places: Sequence[int], stop: int, words: str, tokenizer: Any, form: SystemFormat | None
) -> tuple[list[int], list[int]] | None:
    """A row with `words` as its system message, in place of the one it has or where one would stand.

    Args:
        ids: token ids of the row, without padding.
        places: where each of them stands in the given prompt.
        stop: index of the first image, markers included; the message stands before it.
        words: the new message.
        tokenizer: of the model.
        form: of the chat template.

    Returns:
        Ids and places, or None where the row neither has a system message nor tells where one would stand.
    """
    start = int(bool(ids) and ids[0] == tokenizer.bos_token_id)
    head = list(ids[start:stop])
    text = tokenizer.decode(head, clean_up_tokenization_spaces=False)
    found = _message(text, form)
    if found is None:
        return None
    first_character, last_character, new = found[0], found[1], found[2].format(words=words)
    spans = token_spans(head, tokenizer)
    if first_character == last_character:
        first = last = sum(1 for _, end in spans if end <= first_character)
    else:
        touched = [i for i, (a, b) in enumerate(spans) if b > first_character and a < last_character]
        first, last = touched[0], touched[-1] + 1
        # A token may reach over the end of the message, into the space behind it for example.
        new = text[spans[first][0] : first_character] + new + text[last_character : spans[last - 1][1]]
    tokens = tokenizer.encode(new, add_special_tokens=False)
    first, last = start + first, start + last
    return (
        [*ids[:first], *tokens, *ids[last:]],
        [*places[:first], *([INSERTED] * len(tokens)), *places[last:]],
    )


def _message(text: str, form: SystemFormat | None) -> tuple[int, int, str] | None:
    """Where the system message of a prompt's beginning lies, and what to put there ({words} is the new message)."""
    if form is None:
        role = _PLAIN_USER.search(text)
        end = 0 if role is None else len(text[: role.start()].rstrip())
        return (0, end, "{words}") if end else None
    user = form.user.rstrip()
    if text.startswith(form.opening):
        begin = len(form.opening)
        end = text.find(form.closing + user, begin)
        if end > begin:
            return begin, end, "{words}"
    if user and form.closing and text.startswith(user):
        frame = (part.replace("{", "{{").replace("}", "}}") for part in (form.opening, form.closing))
        return 0, 0, "{words}".join(frame)
    return None
