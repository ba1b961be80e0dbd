"""Decoded rows of several requests shown to a method as one batch, where its edits change from step to step.

A method that has `join_memory` is asked once a layer and step instead of once for every request. Keys are copied out of
their blocks only if it asks for them; the scores of its rows are computed where the keys lie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem
from vlm_guard.kernels.torch_backend import attention_weights
from vlm_guard.method.attention_calls import AttentionCall, BoundMethod
from vlm_guard.method.base import RowScope
from vlm_guard.method.state import GenerationState
from vlm_guard.method.visual_tokens import RowSelection
from vlm_guard.serving.vllm.attention.block_attention import BlockCall
from vlm_guard.serving.vllm.attention.block_layout import DecodeAttention

if TYPE_CHECKING:
    from vlm_guard.serving.vllm.served_guards import EditedLayer


class JointState(GenerationState):
    """Several generations whose next tokens are decoded side by side.

    Args:
        states: theirs; their prompts are read.
        methods: by name, those that are asked about all of them at once.
    """

    def __init__(self, states: Sequence[GenerationState], methods: Mapping[str, BoundMethod]) -> None:
        super().__init__(states[0].visual_token_ids, side=states[0].side)
        self._states = states
        self._methods = methods
        self.visual = _side_by_side([state.visual for state in states], False)
        self.real = _side_by_side([state.real for state in states], True)
        self.active = True

    def memory(self, method: str, layer: int) -> SimpleNamespace:
        """What `method` keeps for `layer` of all of them."""
        key = (method, layer)
        if key not in self._memory:
            kept = [state.memory(method, layer) for state in self._states]
            self._memory[key] = self._methods[method].method.join_memory(kept, self)
        return self._memory[key]


def _side_by_side(rows: Sequence[Tensor], behind: bool) -> Tensor:
    """[N, P] of [1, P] bool tensors, filled up on the right."""
    longest = max(row.shape[1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=behind) for row in rows])


@dataclass(frozen=True, eq=False)
class BlockKeys:
    """The keys and values of a step's rows, copied out of their blocks when they are first asked for.

    Attributes:
        call: the layer's attention. attention: attends over the blocks.
    """

    call: BlockCall
    attention: DecodeAttention

    @property
    def key(self) -> Tensor:
        """[N, G, K, D]."""
        return self._read[0]

    @property
    def value(self) -> Tensor:
        """[N, G, K, D]."""
        return self._read[1]

    @property
    def keys(self) -> int:
        """K."""
        return self.call.mask.shape[-1]

    @cached_property
    def _read(self) -> tuple[Tensor, Tensor]:
        return self.attention.layout.read(self.call.cache, self.call.places)

    def problem(self, edit: AttentionEdit) -> AttentionProblem:
        """The operation, with an edit."""
        return self.call.problem(self.call.query[:, :, None], self.key, self.value, edit)

    def scores(self) -> Tensor:
        """[N, H, 1, K]; see `DecodeAttention.scores`."""
        return self.attention.scores(self.call)


@dataclass(frozen=True, kw_only=True, eq=False)
class JointCall(AttentionCall):
    """The attention of one layer in the rows of several generations.

    Attributes:
        held: keys and values that lie in blocks.
    """

    held: BlockKeys

    def scores(self, *, wide: bool = True) -> Tensor:
        """[N, H, 1, K] float32 scores before the softmax as they are, their products `wide` in any case."""
        return self.held.scores()

    def weights(self) -> Tensor:
        """[N, H, 1, K] float32 attention as it is."""
        return attention_weights(self.held.scores(), self.held.call.sinks)


def joint_edit(layer: "EditedLayer", state: JointState, blocks: BlockKeys) -> AttentionEdit | None:
    """The merged edit of a step's rows by the methods that are asked about all of them at once.

    Args:
        layer: of the model.
        state: of all rows.
        blocks: the layer's attention.

    Returns:
        The edit of [N, H, 1, ...] rows; None where nothing is edited.
    """
    merged = None
    for bound in layer.joint:
        name = bound.method.name
        call = JointCall(
            method=name,
            layer=layer.slot.layer,
            module=layer.module,
            query=blocks.call.query[:, :, None],
            held=blocks,
            rows=None,
            state=state,
            memory=state.memory(name, layer.slot.layer),
            prepared=bound.prepared,
            first_key=0,
            output=None,
            problem=blocks.problem,
            select=_one_row_each,
        )
        edit = bound.method.edit_attention(call)
        if edit is not None and not edit.is_empty:
            merged = edit if merged is None else merged.merge(edit)
    return merged


def _one_row_each(rows: RowScope | RowSelection) -> NoReturn:
    raise RuntimeError("a method that edits decoded rows side by side looks at no other rows than these")
