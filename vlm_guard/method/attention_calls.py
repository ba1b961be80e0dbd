"""What a guarded attention module carries, and what methods see of a layer: the calls handed to their functions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from vlm_guard.families.attention_window import has_window
from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, EditedAttention, edited_attention
from vlm_guard.kernels.torch_backend import attention_scores
from vlm_guard.method.base import Method, RowScope, Sign
from vlm_guard.method.state import GenerationState
from vlm_guard.method.visual_tokens import RowSelection

if TYPE_CHECKING:
    from vlm_guard.guard import Guard
    from vlm_guard.method.target import GuardTarget

SLOT = "_vlm_guard_slot"
WATCHER = "_vlm_guard_watcher"


@dataclass(frozen=True, eq=False)
class BoundMethod:
    """A method as one guard uses it: with the model looked at and its layers known."""

    method: Method
    prepared: Any
    layers: frozenset[int]


@dataclass(eq=False)
class LayerSlot:
    """What a guarded attention module carries: its layer index, its guard, and the processors of this layer."""

    layer: int
    guard: "Guard"
    processors: tuple[BoundMethod, ...]

    def of_side(self, side: Sign) -> tuple[BoundMethod, ...]:
        """The processors that edit the rows of this contrast branch."""
        return self._sides[side]

    @cached_property
    def _sides(self) -> dict[Sign, tuple[BoundMethod, ...]]:
        return {
            side: tuple(bound for bound in self.processors if bound.method.edited_branch == side)
            for side in ("positive", "negative")
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenCall:
    """What `Method.observe_hidden` sees.

    Attributes:
        hidden: [B, Q, hidden size] entering the decoder layer, before its norm.
        layer: index of the decoder layer.
        state: the generation.
        memory: what the method keeps for this layer.
        prepared: what `Method.prepare` returned.
    """

    hidden: Tensor
    layer: int
    state: GenerationState
    memory: SimpleNamespace
    prepared: Any


class HeldKeys(Protocol):
    """The keys and values that a layer holds."""

    @property
    def key(self) -> Tensor:
        """[B, G, K, D]."""
        ...

    @property
    def value(self) -> Tensor:
        """[B, G, K, Dv]."""
        ...

    @property
    def keys(self) -> int:
        """K."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionCall:
    """What an attention processor sees of one attention call.

    Attributes:
        method: name of the method that is asked.
        layer: index of the decoder layer.
        module: the attention module (its weights may be elsewhere: use the tensors, not the module).
        query: [B, H, Q, D] all current queries.
        held: the layer's keys and values; `key` and `value` read them.
        rows: the rows the processor is asked for; None when it is every row (one-token decode, scope "all").
        state: the generation. memory: what the method keeps for this layer. prepared: result of `Method.prepare`.
        first_key: absolute position of key 0 (above 0 in sliding layers whose cache was cut). Edits are about all keys
            of the sequence; the framework cuts them to those a layer holds.
        output: [B, Q, H, Dv] the attention output of all current rows before row edits; None while it is unknown.
        problem: the attention operation of the asked rows under an edit.
        select: the same call for the rows of another scope, or for any rows, to look at their attention; None when
            there are none.
    """

    method: str
    layer: int
    module: nn.Module
    query: Tensor
    held: HeldKeys
    rows: RowSelection | None
    state: GenerationState
    memory: SimpleNamespace
    prepared: Any
    first_key: int
    output: Tensor | None
    problem: Callable[[AttentionEdit], AttentionProblem]
    select: "Callable[[RowScope | RowSelection], AttentionCall | None]"

    @property
    def key(self) -> Tensor:
        """[B, G, K, D]."""
        return self.held.key

    @property
    def value(self) -> Tensor:
        """[B, G, K, Dv]."""
        return self.held.value

    @property
    def is_decode(self) -> bool:
        """Whether this call only continues a prompt that has been read."""
        return not self.state.reading

    def attend(self, edit: AttentionEdit, *, return_weights: bool = False, wide: bool = False) -> EditedAttention:
        """Attention of the asked rows under `edit`: masses, logsumexp and, when asked, weights [B, H, R, K].

        Args:
            edit: what to change; `AttentionEdit()` for the attention as it is.
            return_weights: also return the weights.
            wide: compute the output in float32 too, from inputs of half precision; for what is decided by it.
        """
        problem = replace(self.problem(edit), return_weights=return_weights)
        if wide:
            dtype = torch.promote_types(problem.query.dtype, torch.float32)
            parts = (problem.query, problem.key, problem.value)
            query, key, value = (part.to(dtype) for part in parts)
            problem = replace(problem, query=query, key=key, value=value)
        return edited_attention(problem, self.state_impl)

    def of_rows(self, rows: RowSelection) -> "AttentionCall":
        """The same call for these rows, to look at their attention."""
        selected = self.select(rows)
        if selected is None:
            raise RuntimeError("a selection of rows that exists always has a call")
        return selected

    def weights(self) -> Tensor:
        """[B, H, R, T] float32 attention of the asked rows as it is, over all keys; 0 on dropped ones."""
        return self.over_all_keys(self.attend(AttentionEdit(), return_weights=True).asked_weights())

    def scores(self, *, wide: bool = True) -> Tensor:
        """[B, H, R, K] float32 scores of the asked rows before the softmax as they are; -inf on masked keys.

        Args:
            wide: compute the products of half-precision inputs in float32 too, for what is decided by them.
        """
        return attention_scores(self.problem(AttentionEdit()), wide)

    def visual_keys(self) -> Tensor:
        """[B, K] bool, the visual tokens among the keys that the layer holds."""
        visual, keys = self.state.visual.to(self.query.device), self.held.keys
        held = visual[:, self.first_key : self.first_key + keys]
        return torch.nn.functional.pad(held, (0, keys - held.shape[1]))

    @property
    def has_window(self) -> bool:
        """Whether the layer sees only the latest tokens, or those of its chunk."""
        return has_window(self.target.model.config.get_text_config(decoder=True), self.layer)

    def over_all_keys(self, values: Tensor) -> Tensor:
        """[..., K] values of the keys the layer holds as [..., T] of all keys, 0 on the dropped ones."""
        return torch.nn.functional.pad(values, (self.first_key, 0)) if self.first_key else values

    @property
    def guard(self) -> "Guard":
        """The guard of the model."""
        return getattr(self.module, SLOT).guard

    @property
    def target(self) -> "GuardTarget":
        """The model."""
        return self.guard.target

    @property
    def found(self) -> SimpleNamespace:
        """What the method keeps of this `generate` call apart from any decoder layer, `guard.findings(name)`."""
        return self.guard.findings(self.method)

    @property
    def state_impl(self) -> str | None:
        """The attention backend the guard was told to use, or None for the default."""
        return self.guard.attention_backend
