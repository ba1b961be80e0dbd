"""The base class of methods whose edit is a property of the prompt's keys, made once for each layer and prompt."""

from dataclasses import dataclass
from typing import ClassVar

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method.attention_calls import AttentionCall
from vlm_guard.method.base import Method, Station


@dataclass(frozen=True, kw_only=True)
class KeyEditMethod(Method):
    """Base of methods that say once per prompt and layer what happens to its keys.

    The edit is made when the first pass over (more of) the prompt asks for it, and serves every later token: generated
    keys are ordinary text. A subclass defines `edit_keys`, over all keys of the sequence; layers whose cache holds only
    the last ones get their part of it from the framework.
    """

    stations: ClassVar[tuple[Station, ...]] = ("attention",)
    steady = True
    compiles = True

    def edit_keys(self, call: AttentionCall) -> AttentionEdit | None:
        """The edit of this layer for the prompt as far as it is read, or None for no change."""
        raise NotImplementedError(f"{type(self).__name__} must define edit_keys")

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The edit of the keys read so far."""
        memory, visual = call.memory, call.state.visual
        # The mask of visual tokens is another tensor whenever more of a prompt was read, and the same all answer long.
        if getattr(memory, "edited_keys", None) is not visual:
            memory.edited_keys, memory.key_edit = visual, self.edit_keys(call)
        return memory.key_edit
