"""The types of what files of runs hold: runs are passed on, so their files may come from anybody.

A task says with these what the `score` of its records and its entry under `tasks` in results.json must be before they
are used; what else stands there is left alone.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Whole = Annotated[int, Field(ge=-(10**18), le=10**18)]
_LONGEST_NAME = 100


def _is_name(text: str) -> str:
    if not text.isprintable() or len(text) > _LONGEST_NAME:
        raise ValueError(f"a name has at most {_LONGEST_NAME} signs, all of which can be shown")
    return text


Name = Annotated[str, AfterValidator(_is_name)]
"""Text that becomes part of a metric's name."""


class Received(BaseModel):
    """Fields of a part of a received file; types are strict, and others than the declared fields are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
