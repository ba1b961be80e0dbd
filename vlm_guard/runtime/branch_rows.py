"""Which rows of a forward pass belong to which branch, so that attention edits keep to theirs.

While the prompts are read, each branch is a forward pass of its own and the guard simply has another state. While
both decode as rows of one pass, attention is computed per branch: on the slice of queries, keys and values that the
branch would have had alone. Edits therefore see exactly what they see without a second branch, and the other rows
run the model's own attention.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_guard.method.base import Sign
from vlm_guard.method.state import GenerationState, PromptTokens
from vlm_guard.runtime.attention_context import AttentionInput

if TYPE_CHECKING:
    from vlm_guard.contrast.branch_inputs import BranchInputs
    from vlm_guard.runtime.reading import Reading


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchPart:
    """Where the rows of one branch lie in a decoding attention call of several.

    Attributes:
        first: index of its first row. stop: index after its last.
        dropped: keys in front that are padding for this branch.
    """

    first: int
    stop: int
    dropped: int

    def take(self, given: AttentionInput) -> AttentionInput:
        """The branch's part of a call: its rows, without the padding in front of its prompt."""
        return given.part(self.first, self.stop, self.dropped)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowGroup:
    """The rows of one branch in a joint forward pass.

    Attributes:
        first: index of its first row. stop: index after its last.
        shift: padding that was put in front of its prompt to give it the length of the other's.
        state: its generation state.
    """

    first: int
    stop: int
    shift: int
    state: "GenerationState"

    def take(self, given: AttentionInput) -> AttentionInput:
        """Its part of one decoding attention call."""
        return self.part(given.key.shape[2]).take(given)

    def part(self, keys: int) -> BranchPart:
        """Where it lies in the running decode step of a layer with `keys` = K keys."""
        # A sliding layer's keys begin somewhere behind the padding; a full layer's with it.
        first_key = max(0, self.state.offset + self.shift + 1 - keys)
        dropped = min(keys, max(0, self.shift - first_key))
        return BranchPart(first=self.first, stop=self.stop, dropped=dropped)


class BranchRows:
    """The branches of one generation, as the guard sees them.

    Args:
        of: the reading of the guard whose branches these are.
        second_sign: whether the second branch is the negative or the positive one.
    """

    def __init__(self, of: "Reading", second_sign: Sign) -> None:
        self.of = of
        self.signs: tuple[Sign, Sign] = (
            ("positive", "negative") if second_sign == "negative" else ("negative", "positive")
        )
        self.cache: Any = None
        self.states: list[GenerationState | None] = [None, None]
        self.prompts: list[PromptTokens | None] = [None, None]

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Images encoded inside are the branch's own (noised ones); methods at the vision tower leave them alone."""
        with self.of.probing():
            yield

    @contextmanager
    def reading(self, index: int, part: "BranchInputs") -> Iterator[None]:
        """Forward passes inside read the prompt of branch `index`."""
        token_ids = self.of.target.architecture.visual_token_ids
        prompt = self.prompts[index] = PromptTokens.of(part.input_ids, part.attention_mask, token_ids)
        cache = part.model_kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            # Its beginning was copied from the other branch: to the guard this is a prompt read in two pieces.
            state = self.states[index] = GenerationState(token_ids, prompt, self.signs[index])
            state.cache = weakref.ref(cache)
        with self.stepping(index):
            yield

    @contextmanager
    def stepping(self, index: int) -> Iterator[None]:
        """Forward passes inside go on with branch `index` alone."""
        with self.of.branch(self.signs[index], self.prompts[index], self.states[index]) as call:
            yield
            self.states[index] = call.state

    def merge(self, cache: Any, rows: int, length: int) -> None:
        """From now on every forward pass with `cache` has `rows` rows of each branch, after `length` tokens."""
        self.cache = cache
        groups = []
        for index, (state, prompt) in enumerate(zip(self.states, self.prompts)):
            if state is None or prompt is None:
                # The guard follows no passes, as none of its methods acts in any: nobody will ask whose rows these are.
                return
            shift = length - prompt.length
            groups.append(RowGroup(first=index * rows, stop=(index + 1) * rows, shift=shift, state=state))
        self.of.join(cache, tuple(groups))

    def close(self) -> None:
        """The generation is over: what is left is the state of the positive branch."""
        index = self.signs.index("positive")
        # Behind a gate the second branch may never have been read.
        self.of.part(self.cache, self.states[index] or self.states[1 - index])
