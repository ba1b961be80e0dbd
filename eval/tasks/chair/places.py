"""Where in a caption its hallucinations stand, and what is left of it at another length.

Long captions hallucinate more, and mostly at their end: a method that only shortens captions lowers CHAIR. These counts
tell the two apart: by fifths of the text, per 100 words, without a last sentence that the token limit cut off, and cut
to as many words as another caption of the same picture has.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FIFTHS = 5
_WORD = re.compile(r"\S+")
_AFTER_END = " \t\r\n\"'”’)]*"


def fifth_of(start: int, length: int) -> int:
    """Which fifth of a text of `length` characters the character at `start` lies in, 0 to 4."""
    return min(FIFTHS - 1, FIFTHS * start // max(length, 1))


def complete_end(text: str) -> int:
    """Where the last complete sentence of a text ends: behind its full stop, exclamation or question mark.

    A text without any such mark is taken for one sentence that is complete.
    """
    place = len(text)
    while (place := max(text.rfind(mark, 0, place) for mark in ".!?")) >= 0:
        if place + 1 == len(text) or text[place + 1] in _AFTER_END:
            return place + 1
    return len(text)


def end_of_words(text: str, words: int) -> int:
    """Where a text is cut to have this many words: behind the last of them; 0 for none."""
    end = 0
    for count, match in enumerate(_WORD.finditer(text)):
        if count == words:
            break
        end = match.end()
    return end


@dataclass(frozen=True, kw_only=True)
class PlaceCounts:
    """The counts of one caption that depend on where its mentions stand.

    Attributes:
        mentions: mentions in each fifth of the text.
        hallucinated: those of them whose object is not in the image.
        complete_mentions: mentions in the complete sentences.
        complete_hallucinated: those of them whose object is not in the image.
        complete_recalled: distinct objects of the image that the complete sentences mention.
    """

    mentions: tuple[int, ...]
    hallucinated: tuple[int, ...]
    complete_mentions: int
    complete_hallucinated: int
    complete_recalled: int


def count_places(text: str, mentions: Sequence[tuple[int, int, str, bool]], end: int) -> PlaceCounts:
    """The counts of one caption.

    Args:
        text: the caption.
        mentions: start, end, object and whether it is hallucinated, of every mention in order.
        end: where the complete sentences end (`complete_end`).
    """
    named, wrong = [0] * FIFTHS, [0] * FIFTHS
    complete, complete_wrong, recalled = 0, 0, set()
    length = len(text)
    for start, stop, node, hallucinated in mentions:
        fifth = fifth_of(start, length)
        named[fifth] += 1
        wrong[fifth] += hallucinated
        if stop <= end:
            complete += 1
            complete_wrong += hallucinated
            if not hallucinated:
                recalled.add(node)
    return PlaceCounts(
        mentions=tuple(named),
        hallucinated=tuple(wrong),
        complete_mentions=complete,
        complete_hallucinated=complete_wrong,
        complete_recalled=len(recalled),
    )


def cut_record(record: dict[str, Any], words: int) -> dict[str, Any]:
    """A caption's record as if the caption had ended after so many words."""
    score, end = record["score"], end_of_words(record["text"], words)
    mentions = [mention for mention in score["mentions"] if mention["end"] <= end]
    cut = {
        **score,
        "mentions": mentions,
        "chair_s": int(any(mention["hallucinated"] for mention in mentions)),
        "words": min(words, score["words"]),
    }
    return {**record, "text": record["text"][:end], "finished": True, "score": cut}
