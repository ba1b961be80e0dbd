"""Prompts whose beginning lies in a cache: which methods can go on with them, and which cannot.

The rows of a cached beginning have been read. They are right as they are where a method would not have edited them
(text in front of the picture, for most), or has edited them under this guard. What a method learned about a prompt as a
whole does not fit another prompt that only begins alike.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_guard.method.state import GenerationState
from vlm_guard.method.visual_tokens import wanted_rows

if TYPE_CHECKING:
    from vlm_guard.method.attention_calls import BoundMethod


def kept_methods(methods: "Sequence[BoundMethod]") -> frozenset[str]:
    """Names of the methods whose findings about cached tokens hold for any prompt that begins with them."""
    return frozenset(bound.method.name for bound in methods if bound.method.whole_prompt is None)


def refuse_cached_part(methods: "Sequence[BoundMethod]", state: GenerationState) -> None:
    """Refuse a pass that reads the rest of a prompt whose cached beginning a method would have needed.

    Args:
        methods: of the guard.
        state: the generation, which has taken in the tokens of the pass.

    Raises:
        ValueError: the cached rows lack an edit, or a method must see them together with the others.
    """
    if not state.active:
        return
    for bound in methods:
        method = bound.method
        if method.edited_branch != state.side or not bound.layers or state.only is not None:
            continue
        attention = method.edits_attention() and method.rows == "all"
        hidden = method.overrides("edit_hidden") and method.hidden_rows == "all"
        if state.unseen and (attention or hidden):
            raise ValueError(
                f"{method.name} edits all rows of a prompt with a picture, but the cache holds {state.unseen} tokens "
                "that were read before any picture was known; read text and picture in one pass"
            )
        if method.whole_prompt is None or state.remembers(method.name):
            continue
        cached = state.real[:, : state.offset]
        rows = wanted_rows(method.whole_prompt, state.visual, 0, state.offset, state.prompt_length, cached)
        if bool(rows.any()):
            raise ValueError(
                f"{method.name} has to see the whole prompt in one pass, but the cache holds a part of it "
                f"({state.offset} tokens); start from the whole prompt without past_key_values"
            )
