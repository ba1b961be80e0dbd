"""What files of runs must hold about grounding before it is used."""

from typing import Annotated

from pydantic import Field

from vlm_guard.eval.tasks.shared.received import Count, Name, Received
from vlm_guard.grounding.score import REPAIR_BELOW


class _Mention(Received):
    noun: str
    start: Count
    end: Count
    token_span: Annotated[list[Count], Field(min_length=2, max_length=2)]
    score: Annotated[float, Field(ge=0, le=1)] | None
    verdict: str
    parts: dict[Name, Annotated[float, Field(ge=-1e6, le=1e6)]]


class _Repaired(Received):
    text: str
    nouns: list[str]
    removed: list[str]
    faults: list[str]
    below: Annotated[float, Field(ge=0, le=1)] = REPAIR_BELOW


class GroundingScoreReceived(Received):
    """The score of an answered caption."""

    mentions: list[_Mention]
    objects: list[str] | None
    length: Count
    repaired: _Repaired | None = None


class GroundingDescribed(Received):
    """How captions were asked for and what was measured of them."""

    prompt: str
    max_new_tokens: Count
    parts: list[Name]
    lens_layers: list[Count] = []
    labels: bool = True
    words: str = "coco"
