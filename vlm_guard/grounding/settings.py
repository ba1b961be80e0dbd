"""What is measured of the mentions of an answer, and how."""

from dataclasses import dataclass
from typing import Literal, get_args

from vlm_guard.grounding.mention import MentionFinder
from vlm_guard.grounding.nouns import find_mentions
from vlm_guard.grounding.score import THRESHOLD

QUESTION = "Is there {noun} in the image?"
"""What `self_check` asks about every mention."""

Part = Literal["lens", "self_check", "logp", "dependence", "position"]
PARTS: tuple[Part, ...] = get_args(Part)
Repair = Literal["drop", "rewrite"]
REPAIRS: tuple[Repair, ...] = get_args(Repair)


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """How mentions are found and scored.

    Attributes:
        parts: what is measured of every mention. "lens": what the picture's own tokens say (`PromptLens`);
            "self_check": whether the plain model says that the thing is there (`self_check`); "logp": the plain model's
            log-probability of its first token; "dependence": by how much that falls without the picture; "position":
            minus the number of its first token, which measures nothing but how late it comes. A score is made of the
            first two, of others where a profile has weights for the set.
        find: from a text to its mentions; by default nouns by an English rule.
        question: of the self-check, with `{noun}`.
        threshold: a mention with at least this score is grounded.
        repair: "drop" takes doubtful mentions out by rules, a sentence as a whole where no rule can cut it; "rewrite"
            lets the model write such a sentence once more, without them. None leaves answers as they are.
        repair_below: a mention is taken out if its score is below this. None takes what the model's profile says,
            measured so that hardly anything true goes too (`vlm-guard calibrate --grounding`), else 0.06.
        lens_layers: the layers that the lens reads (0: what enters the decoder; the depth: what leaves it); None for
            those of the model's profile, or four from the first to the last where it names none.
    """

    parts: tuple[Part, ...] = ("lens", "self_check")
    find: MentionFinder = find_mentions
    question: str = QUESTION
    threshold: float = THRESHOLD
    repair: Repair | None = None
    repair_below: float | None = None
    lens_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"grounding parts are {list(self.parts)}; allowed: {', '.join(PARTS)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"the threshold of grounding is {self.threshold}; allowed: 0 to 1")
        if self.repair_below is not None and not 0 <= self.repair_below <= 1:
            raise ValueError(f"repair_below is {self.repair_below}; allowed: 0 to 1")
        if self.repair is not None and self.repair not in REPAIRS:
            raise ValueError(f"repair is {self.repair!r}; allowed: {', '.join(REPAIRS)}, or None")
