"""One row of the table of what works on a guarded model."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["yes", "refused", "not tested"]
Part = Literal["generate", "passes", "loading"]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One row of the table.

    Attributes:
        name: the feature, in the words of transformers.
        part: an option of `generate`, another way to run the model, or a way to load it.
        attention: what happens with methods that act inside the model (attention, hidden states, vision tower).
        contrast: what happens with methods that contrast logits with those of a second branch.
        note: what exactly happens, and what a user does where it is refused.
        tests: node names of the tests that show it, file and function.
    """

    name: str
    part: Part = "generate"
    attention: Status = "yes"
    contrast: Status = "yes"
    note: str = ""
    tests: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.tests and (self.attention, self.contrast) != ("not tested", "not tested"):
            raise ValueError(f"{self.name}: name the tests that show it, or say 'not tested'")
