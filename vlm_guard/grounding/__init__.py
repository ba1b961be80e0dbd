"""How sure is the model of this word? A score for every thing an answer mentions, and answers repaired by it.

May import: kernels, families, method, runtime, contrast. Names are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_guard.grounding.answers import ground
    from vlm_guard.grounding.grounded_answer import GroundedAnswer
    from vlm_guard.grounding.lens import PromptLens
    from vlm_guard.grounding.mention import Box, FoundMention, Mention
    from vlm_guard.grounding.nouns import find_mentions, word_finder
    from vlm_guard.grounding.presence import self_check
    from vlm_guard.grounding.repair import Removed, Repaired, drop_doubtful
    from vlm_guard.grounding.settings import Grounding

_HOMES = {
    "answers": ("ground",),
    "grounded_answer": ("GroundedAnswer",),
    "lens": ("PromptLens",),
    "mention": ("Box", "FoundMention", "Mention"),
    "nouns": ("find_mentions", "word_finder"),
    "presence": ("self_check",),
    "settings": ("Grounding",),
    "repair": ("Removed", "Repaired", "drop_doubtful"),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Box",
    "FoundMention",
    "GroundedAnswer",
    "Grounding",
    "Mention",
    "PromptLens",
    "Removed",
    "Repaired",
    "drop_doubtful",
    "find_mentions",
    "ground",
    "self_check",
    "word_finder",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"vlm_guard.grounding.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
