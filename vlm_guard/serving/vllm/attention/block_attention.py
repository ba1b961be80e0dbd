"""Edited attention of one new token each of several requests, over the blocks where their keys and values lie.

Compiled it reads every key and value once, where they are; uncompiled they are gathered first, which costs several
times as much.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.kernels.torch_backend import Redistribution, attend_with, attention_scores, scores_with
from vlm_guard.runtime.graph_break import accepted
from vlm_guard.serving.vllm.attention.block_layout import ProductLayout

_Function = Callable[..., Tensor]
_STATIC = "_vlm_guard_static"
_TERMS = "bias", "gain", "slope", "head_scale", "self_mix"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockEdit:
    """The edit of rows that are decoded together, made for as many keys as are read of each.

    Attributes:
        given: as it was stacked.
        keys: K, as many keys as are read of each row.
        edit: the same described for exactly these keys.
        without_policy: the same without its weight policy.
        moves: this policy, folded into the segments; None where there is none that can be.
    """

    given: AttentionEdit
    keys: int
    edit: AttentionEdit
    without_policy: AttentionEdit
    moves: Redistribution | None

    @classmethod
    def of(cls, given: AttentionEdit, keys: int) -> "BlockEdit":
        """Made for `keys` keys."""
        edit = given.with_fixed_shapes(keys, torch.float32)
        described = {name: getattr(edit, name) for name in _TERMS}
        terms: dict[str, Any] = {name: None if term is None else _own(term) for name, term in described.items()}
        moves = Redistribution.of(edit, keys, torch.float32)
        if moves is not None:
            moves = replace(moves, combinations=_own(moves.combinations), spread=_own(moves.spread))
        return cls(given=given, keys=keys, edit=edit, without_policy=AttentionEdit(**terms), moves=moves)

    @property
    def changes_weights(self) -> bool:
        """Whether attention has to be computed anew."""
        return self.edit.changes_weights


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockCall:
    """One layer's attention of one new token each of N requests.

    Attributes:
        query: [N, H, D]. Of a view a graph asks how it lies in its base, so no tensor here is one but the cache.
        own_value: [N, G, D], values of the new tokens themselves, for edits that mix them in; else None.
        cache: the layer's keys and values.
        places: of the blocks of each request; see `BlockLayout`.
        mask: [N, 1, 1, K] bool, the keys each may see.
        scaling: factor of q.k. softcap: of the scores, or None. sinks: [H] sink logits, or None.
    """

    query: Tensor
    own_value: Tensor | None
    cache: Tensor
    places: Tensor
    mask: Tensor
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def problem(self, query: Tensor, key: Tensor, value: Tensor, edit: AttentionEdit) -> AttentionProblem:
        """The operation, with an edit."""
        return AttentionProblem(
            query=query,
            key=key,
            value=value,
            edit=edit,
            scaling=self.scaling,
            mask=self.mask,
            softcap=self.softcap,
            sink_logits=self.sinks,
            own_value=None if self.own_value is None else self.own_value[:, :, None],
            return_statistics=False,
        )


class BlockAttention:
    """Attends with the edits of one process.

    Args:
        layout: of the cache's blocks.
        heads: H, query heads.
        compiles: whether steps are compiled, one graph for each kind of edit; made when first met and kept on disk
            by torch. Where that fails a warning says so, and all steps are computed uncompiled from then on.
    """

    def __init__(self, layout: ProductLayout, heads: int, compiles: bool = True) -> None:
        self.layout = layout
        self._compiles = compiles
        self._compiled: dict[tuple[_Function, tuple[bool | None, ...]], _Function] = {}
        # Only requests and their lengths come and go. A graph that knows the other sizes has no division in its loops;
        # numbers of Python would be taken for sizes that change.
        self._heads = _of_static_size(torch.empty(heads))

    def attend(self, call: BlockCall, edit: BlockEdit) -> Tensor:
        """The outputs [N, H, D] of a call with an edit."""
        if edit.moves is not None or edit.edit.policy is None:
            output = self._compiled_result(
                _attend, _kind_of(call, edit), call, edit.without_policy, edit.moves, self.layout, self._heads
            )
            if output is not None:
                return output
        key, value = self.layout.read(call.cache, call.places)
        return edited_attention(call.problem(call.query[:, :, None], key, value, edit.edit), "torch").output[:, 0]

    def scores(self, call: BlockCall) -> Tensor:
        """[N, H, 1, K] scores of a call before the softmax and any edit, in float32; -inf on masked keys."""
        scores = self._compiled_result(_scores, (call.softcap is not None,), call, self.layout, self._heads)
        if scores is not None:
            return scores
        key, value = self.layout.read(call.cache, call.places)
        return attention_scores(call.problem(call.query[:, :, None], key, value, AttentionEdit()))

    def _compiled_result(
        self, function: _Function, kind: tuple[bool | None, ...], call: BlockCall, *given: Any
    ) -> Tensor | None:
        """What a function, compiled for calls of this kind, makes of a call and what is given; None where that fails.

        Every kind has graphs, and a limit of them, of its own.
        """
        if not self._compiles:
            return None
        _of_static_size(call.cache)
        compiled = self._compiled.get((function, kind))
        if compiled is None:
            isolated = accepted(torch.compile, isolate_recompiles=True)
            compiled = torch.compile(function, dynamic=True, fullgraph=True, **isolated)
            self._compiled[function, kind] = compiled
        try:
            return compiled(call, *given)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._compiles = False
            _log.warning(
                "guarded steps cannot be compiled here (torch needs a C++ compiler for it), so they take longer; "
                "answers are the same: %s",
                str(error).strip().splitlines()[0],
            )
            return None


def _kind_of(call: BlockCall, edit: BlockEdit) -> tuple[bool | None, ...]:
    """Of which kind a call with an edit is; see `BlockAttention`."""
    described, moves = edit.without_policy, edit.moves
    # Where the heads have one thing in common its dimension is 1, for which there are graphs of their own.
    of_heads = described.bias, described.gain, described.slope, None if moves is None else moves.spread
    others = described.head_scale, described.self_mix, call.sinks, call.softcap
    return (
        *(None if term is None else term.shape[1] == 1 for term in of_heads),
        *(term is not None for term in others),
    )


def _scores(call: BlockCall, layout: ProductLayout, heads: Tensor) -> Tensor:
    products = layout.products(call.cache, call.places)
    query = call.query.view(-1, heads.shape[0], 1, call.query.shape[2])
    return scores_with(call.problem(query, products.one, products.one, AttentionEdit()), products, True)


def _attend(
    call: BlockCall, edit: AttentionEdit, moves: Redistribution | None, layout: ProductLayout, heads: Tensor
) -> Tensor:
    products = layout.products(call.cache, call.places)
    query = call.query.view(-1, heads.shape[0], 1, call.query.shape[2])
    problem = call.problem(query, products.one, products.one, edit)
    return attend_with(problem, slice(0, 1), products, moves).output[:, 0]


def _own(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: of a view a graph would ask how it lies in the tensor that it is a view of."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _of_static_size(tensor: Tensor) -> Tensor:
    """The tensor, whose sizes a graph may take for granted."""
    if _STATIC not in vars(tensor):
        torch._dynamo.mark_static(tensor)
        setattr(tensor, _STATIC, True)
    return tensor
