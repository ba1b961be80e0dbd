"""What is said about one mention of a thing in an answer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Verdict = Literal["grounded", "doubtful", "unchecked"]


class FoundMention(NamedTuple):
    """A mention as a finder gives it.

    Attributes:
        noun: the thing in the singular, as a question about it names it ("dining table").
        start, end: its characters in the text, the end excluded.
    """

    noun: str
    start: int
    end: int


MentionFinder = Callable[[str], list[FoundMention]]
"""From a text to its mentions, in order and without overlap."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of a picture, in fractions of its width and height as the model was shown it.

    A processor that crops a picture shows the model a part of it; the fractions are then of that part.

    Attributes:
        image: number of the picture in its prompt, from 0.
        left, top, right, bottom: its edges, 0 to 1.
    """

    image: int
    left: float
    top: float
    right: float
    bottom: float

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of a picture of this size."""
        edges = (self.left * width, self.top * height, self.right * width, self.bottom * height)
        left, top, right, bottom = (round(edge) for edge in edges)
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Mention:
    """One mention of a thing in an answer, and how well the picture supports it.

    Attributes:
        text: as the answer spells it.
        noun: the thing in the singular.
        start, end: its characters in the answer's text, the end excluded.
        token_span: the generated tokens that spell it, (first, behind the last), counted from the answer's beginning.
        score: 0 (not in the picture) to 1; None where it was not checked.
        verdict: "grounded" or "doubtful" by the threshold, "unchecked" without a picture or a noun to ask about.
        parts: what the score was made of, by name.
        box: where in the picture the thing was read, or None where that is not known.
    """

    text: str
    noun: str
    start: int
    end: int
    token_span: tuple[int, int]
    score: float | None
    verdict: Verdict
    parts: dict[str, float] = field(default_factory=dict)
    box: Box | None = None

    def to_dict(self) -> dict[str, Any]:
        """The mention as JSON can hold it; the box as fractions."""
        box = None if self.box is None else {name: getattr(self.box, name) for name in Box.__dataclass_fields__}
        plain = ("text", "noun", "start", "end", "score", "verdict", "parts")
        return {**{name: getattr(self, name) for name in plain}, "token_span": list(self.token_span), "box": box}
