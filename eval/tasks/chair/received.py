"""What files of runs must hold about CHAIR before it is used."""

from typing import Annotated

from pydantic import Field

from vlm_guard.eval.tasks.shared.received import Count, Received


class _Mention(Received):
    node: str
    text: str
    start: Count
    end: Count
    hallucinated: bool


class ChairScoreReceived(Received):
    """The score of an answered caption."""

    mentions: list[_Mention]
    objects: list[str]
    chair_s: Annotated[int | bool | float, Field(ge=0, le=1)]
    tokens: Count
    words: Count
    repeated_4_grams: Annotated[float, Field(ge=0, le=1)]


class ChairDescribed(Received):
    """How captions were asked for."""

    text_mode: str
    prompt: str
    max_new_tokens: Count
