"""An answer with what is said about its mentions."""

from dataclasses import asdict, dataclass, field
from typing import Any

from vlm_guard.grounding.mention import Mention
from vlm_guard.grounding.repair import Repaired


@dataclass(frozen=True, kw_only=True)
class GroundedAnswer:
    """An answer with its mentions.

    Attributes:
        text: the answer, without special tokens and surrounding blanks.
        mentions: in order.
        repaired: the answer after its repair, where one was asked for.
    """

    text: str
    mentions: list[Mention] = field(default_factory=list)
    repaired: Repaired | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON can hold it."""
        return {
            "answer": self.text,
            "mentions": [mention.to_dict() for mention in self.mentions],
            "repaired": None if self.repaired is None else asdict(self.repaired),
        }
