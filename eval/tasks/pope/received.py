"""What files of runs must hold about POPE before it is used."""

from typing import Annotated, Literal

from pydantic import Field

from vlm_guard.eval.tasks.shared.received import Name, Received


class PopeScoreReceived(Received):
    """The score of an answered question."""

    answer: Literal["yes", "no", "unparsed"]
    label: Literal["yes", "no"]
    object: str
    strategies: Annotated[list[Name], Field(min_length=1)]


class PopeDescribed(Received):
    """How the questions were asked and read."""

    suffix: str
    parser: str
