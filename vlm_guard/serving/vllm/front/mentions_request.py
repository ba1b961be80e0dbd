"""What a client says of an answer that is to be scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_guard.grounding.mention import FoundMention, MentionFinder
from vlm_guard.grounding.nouns import find_mentions, word_finder
from vlm_guard.grounding.settings import Grounding, Part
from vlm_guard.serving.vllm.grounding.conversation import LONGEST, Conversation
from vlm_guard.untrusted.printed_text import shown

HANDED_ON = ("model", "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs", "user")
"""What is handed on to the chat interface as it is."""
_OWN = (
    "messages",
    "token_ids",
    "parts",
    "words",
    "mentions",
    "question",
    "threshold",
    "repair",
    "repair_below",
)
MOST_WORDS = 1000


@dataclass(frozen=True, kw_only=True)
class MentionsRequest:
    """One request.

    Attributes:
        conversation: with the answer.
        token_ids: of the answer, where the client has them.
        settings: what is measured of it.
        handed_on: what the chat interface is told.
    """

    conversation: Conversation
    token_ids: list[int] | None
    settings: Grounding
    handed_on: dict[str, Any]

    @classmethod
    def of(cls, given: Any, offered: tuple[Part, ...]) -> "MentionsRequest":
        """From its JSON.

        Args:
            given: the JSON.
            offered: the parts that are measured by default.

        Raises:
            ValueError: it is no request; the message says what was given and what is allowed.
        """
        allowed = ", ".join((*HANDED_ON, *_OWN))
        if not isinstance(given, dict):
            raise ValueError(f"the request is {shown(given)}; it must be an object with {allowed}")
        unknown = [name for name in given if name not in (*HANDED_ON, *_OWN)]
        if unknown:
            raise ValueError(f"{shown(unknown[0])} is not known here; allowed: {allowed}")
        conversation = Conversation.of(given.get("messages"))
        settings: dict[str, Any] = {"parts": tuple(_texts(given, "parts") or offered), "find": _finder(given)}
        for name, kinds, what in (
            ("question", str, "text with {noun}"),
            ("repair", str, "drop"),
            ("threshold", (int, float), "a number, 0 to 1"),
            ("repair_below", (int, float), "a number, 0 to 1"),
        ):
            value = given.get(name)
            if value is None:
                continue
            blank = name == "question" and "{noun}" not in str(value)
            if not isinstance(value, kinds) or isinstance(value, bool) or blank:
                raise ValueError(f"{name}: given {shown(value)}; allowed: {what}")
            settings[name] = value
        return cls(
            conversation=conversation,
            token_ids=_token_ids(given),
            settings=Grounding(**settings),
            handed_on={name: given[name] for name in HANDED_ON if name in given},
        )


def _finder(given: Mapping[str, Any]) -> MentionFinder:
    """What finds the mentions: the client itself, a list of words, or the rule for nouns."""
    words, own = _texts(given, "words"), given.get("mentions")
    if own is None:
        return find_mentions if words is None else word_finder(words)
    if words is not None:
        raise ValueError("words and mentions both say what counts as a mention; give one of them")
    form = "a list of objects with noun, start and end (characters of the answer, without blanks around it)"
    fields = {"noun": str, "start": int, "end": int}
    if not isinstance(own, list) or len(own) > MOST_WORDS:
        raise ValueError(f"mentions: given {shown(own)}; allowed: {form}, at most {MOST_WORDS}")
    for entry in own:
        if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in fields.items()):
            raise ValueError(f"mentions: given {shown(entry)}; allowed: {form}")
    found = [FoundMention(entry["noun"], entry["start"], entry["end"]) for entry in own]
    return lambda text: found


def _token_ids(given: Mapping[str, Any]) -> list[int] | None:
    value = given.get("token_ids")
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) > LONGEST
        or any(type(i) is not int or not 0 <= i < 2**31 for i in value)
    ):
        raise ValueError(f"token_ids: given {shown(value)}; allowed: the answer's token ids, at most {LONGEST}")
    return value


def _texts(given: Mapping[str, Any], name: str) -> list[str] | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not 0 < len(value) <= MOST_WORDS or not all(isinstance(i, str) for i in value):
        raise ValueError(f"{name}: given {shown(value)}; allowed: a list of 1 to {MOST_WORDS} texts")
    return value
