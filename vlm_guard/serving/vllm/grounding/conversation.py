"""A conversation whose last answer is to be scored, in the form of OpenAI's chat interface."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_guard.untrusted.printed_text import shown

Message = Mapping[str, Any]
LONGEST = 20_000
"""So many characters an answer may have; every server that reads answers of strangers needs some limit."""
_TEXTS = ("text", "input_text", "output_text", "refusal")
_FORM = "a list of messages, each with a role and a content, of which the last is the assistant's answer to be scored"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation up to its last answer.

    Attributes:
        prompt: the messages in front of the answer.
        answer: its text, as it was given.
    """

    prompt: list[Message]
    answer: str

    @classmethod
    def of(cls, messages: Any) -> "Conversation":
        """From the messages, the answer included.

        Raises:
            ValueError: they are not that.
        """
        if not isinstance(messages, list) or len(messages) < 2:
            raise ValueError(f"messages: given {shown(messages)}; it must be {_FORM}")
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ValueError(f"messages[{number}]: given {shown(message)}; each needs a role and a content")
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"messages: the last one is of the {shown(messages[-1]['role'])}; it must be {_FORM}")
        answer = _text(messages[-1].get("content"))
        if len(answer) > LONGEST:
            raise ValueError(f"the answer has {len(answer)} characters; at most {LONGEST} are read at once")
        return cls(prompt=messages[:-1], answer=answer)

    @property
    def shows_picture(self) -> bool:
        """Whether the user shows a picture."""
        return any(_has_picture(message) for message in self.prompt)

    def question(self, text: str) -> list[Message]:
        """The conversation up to its last picture, of which `text` is asked in the place of what was.

        In a request that ends there the model answers the question.
        """
        last = max(number for number, message in enumerate(self.prompt) if _has_picture(message))
        parts = [part for part in self.prompt[last]["content"] if not _is_text(part)]
        asked = {**self.prompt[last], "content": [*parts, {"type": "text", "text": text}]}
        return [*self.prompt[:last], asked]


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type") in _TEXTS)


def _has_picture(message: Message) -> bool:
    content = message.get("content")
    return message["role"] != "assistant" and isinstance(content, list) and not all(map(_is_text, content))


def _text(content: Any) -> str:
    """The text of an answer.

    Raises:
        ValueError: it is more than text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(map(_is_text, content)):
        texts = [part if isinstance(part, str) else part.get(part["type"]) or part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise ValueError(f"messages: the content of the last one is {shown(content)}; it must be the answer's text")
