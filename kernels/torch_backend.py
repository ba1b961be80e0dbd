"""The torch backend: vectorised, any device, no key is repeated and no more than a fixed block of rows is held."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import SEGMENT_COUNT, AttentionEdit, Segments
from vlm_guard.kernels.edited_attention import AttentionProblem, EditedAttention
from vlm_guard.kernels.policies import LinearForm, LinearPolicy
from vlm_guard.kernels.reference import allowed_keys

# Rows are processed in blocks so that the scores of one block stay within this many elements (64 MiB in float32):
# memory then grows with K, never with R x K.
BLOCK_ELEMENTS = 16 * 1024 * 1024
# What a float mask adds to hide a key: half of float16's lowest number, which no bias of positions reaches.
LOWEST_SCORE = -3e4


class Products(Protocol):
    """The two products of attention, whose keys and values may lie anywhere.

    The heads of one key-value group share its keys, so their rows are stacked instead of repeating the keys: N = B * G.
    """

    @property
    def keys(self) -> int:
        """K, keys of each row."""
        ...

    def scores(self, query: Tensor, wide: torch.dtype, decides: bool) -> Tensor:
        """[N, R, K] products of queries [N, R, D] and keys in `wide`, at least float32; see `_products`."""
        ...

    def outputs(self, weights: Tensor) -> Tensor:
        """[N, R, Dv] products of weights [N, R, K] and values, in the values' dtype."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class _DenseProducts:
    """Those of keys [B, G, K, D] and values [B, G, K, Dv]."""

    key: Tensor
    value: Tensor

    @property
    def keys(self) -> int:
        return self.key.shape[2]

    def scores(self, query: Tensor, wide: torch.dtype, decides: bool) -> Tensor:
        return _products(query, self.key.flatten(0, 1).transpose(1, 2), wide, decides)

    def outputs(self, weights: Tensor) -> Tensor:
        return torch.bmm(weights.to(self.value.dtype), self.value.flatten(0, 1))


@dataclass(frozen=True, eq=False, slots=True)
class Redistribution:
    """A linear policy folded into the segments of K keys, all as tensors.

    Attributes:
        form: the policy's.
        combinations: [B or 1, H or 1, K, 5]. spread: [B or 1, H or 1, 2, K]; see `Segments.folded`.
    """

    form: LinearForm
    combinations: Tensor
    spread: Tensor

    @classmethod
    def of(cls, edit: AttentionEdit, keys: int, dtype: torch.dtype) -> "Redistribution | None":
        """That of an edit; None where it has no policy, or one that cannot be folded."""
        if edit.segments is None or not isinstance(edit.policy, LinearPolicy) or edit.policy_rows is not None:
            return None
        return cls(*edit.segments.folded(edit.policy, keys, dtype))

    def apply(self, weights: Tensor) -> Tensor:
        """The policy's weights [B, H, R, K], without the masses in between."""
        batch, heads, count, _ = weights.shape
        if torch.compiler.is_compiling() and weights.device.type == "cpu":
            # Sums and products of single elements are fused with the softmax; products of matrices are not.
            sums = [(weights * column[..., None, :]).sum(-1) for column in self.combinations.unbind(-1)]
            constant, moved = self.form.selected_gain(torch.stack(sums, -1)).unsqueeze(-2).unbind(-1)
            given, received = self.spread[..., None, 0, :], self.spread[..., None, 1, :]
            return weights * (1 + constant * given + moved * received)
        combined = torch.bmm(_flat(weights, self.combinations), _flat_matrix(self.combinations, batch, heads))
        gain = self.form.selected_gain(combined.view(batch, heads, count, 5))
        one = weights.new_ones(())
        factors = torch.baddbmm(one, _flat(gain, self.combinations), _flat_matrix(self.spread, batch, heads))
        return weights * factors.view(weights.shape)


def torch_attention(problem: AttentionProblem) -> EditedAttention:
    """Edited attention with plain torch operations; see `AttentionProblem` for shapes."""
    problem = problem.gathered()
    batch, heads, rows, _ = problem.query.shape
    block = max(1, BLOCK_ELEMENTS // (batch * heads * problem.key.shape[2]))
    if rows <= block or problem.return_weights:
        return _attend(problem, slice(0, rows))
    parts = [_attend(problem, slice(start, min(start + block, rows))) for start in range(0, rows, block)]
    masses = [part.masses for part in parts if part.masses is not None]
    logsumexp = [part.logsumexp for part in parts if part.logsumexp is not None]
    return EditedAttention(
        output=torch.cat([part.output for part in parts], 1),
        masses=torch.cat(masses, 2) if masses else None,
        logsumexp=torch.cat(logsumexp, 2) if problem.return_statistics else None,
    )


def _attend(problem: AttentionProblem, rows: slice) -> EditedAttention:
    return attend_with(problem, rows, _DenseProducts(problem.key, problem.value))


def attend_with(
    problem: AttentionProblem, rows: slice, products: Products, moves: Redistribution | None = None
) -> EditedAttention:
    """Edited attention of some rows with the products of any store of keys and values.

    Args:
        problem: its key and value say how many groups and what size there are; they need not have all keys.
        rows: which of its rows.
        products: with all keys and values.
        moves: the edit's policy, for an edit that is given without it.
    """
    edit = problem.edit
    query = problem.query if rows.stop - rows.start == problem.query.shape[2] else problem.query[:, :, rows]
    batch, heads, count, head_dim = query.shape
    groups, keys = problem.key.shape[1], products.keys
    per_group = heads // groups
    wide = torch.promote_types(query.dtype, torch.float32)

    # Plain batched products of three-dimensional views: a decode step is short enough to feel each extra dispatch.
    stacked = query.reshape(batch * groups, per_group * count, head_dim)
    decides = edit.policy is not None or problem.return_weights or problem.return_statistics
    scores = products.scores(stacked, wide, decides).view(batch, heads, count, keys)
    scores = _edit_scores(_finish_scores(scores, problem, rows), edit, rows)
    scores = _apply_mask(scores, problem, rows)

    logsumexp: Tensor | None
    if problem.sink_logits is not None:
        weights, logsumexp = _softmax_with_sinks(scores, problem.sink_logits)
    else:
        logsumexp = scores.logsumexp(-1) if problem.return_statistics else None
        weights = scores.softmax(-1)
        if problem.mask is not None or problem.row_positions is not None or edit.bias is not None:
            # A row that may attend to nothing has weights of zero, not NaN.
            unseen = scores.amax(-1, keepdim=True) == float("-inf")
            weights = weights.masked_fill(unseen, 0)

    masses = None
    if moves is None and not problem.return_statistics:
        moves = Redistribution.of(edit, keys, weights.dtype)
    if moves is not None:
        weights = moves.apply(weights)
    elif edit.segments is not None:
        weights, masses = _apply_policy(weights, edit.segments, edit, rows)

    output = products.outputs(weights.view(batch * groups, per_group * count, keys))
    output = output.view(batch, heads, count, problem.value.shape[-1])
    output = _edit_output(output, problem, rows, per_group)
    return EditedAttention(
        output=output.transpose(1, 2).contiguous(),
        masses=masses,
        weights=weights if problem.return_weights else None,
        logsumexp=logsumexp,
    )


def attention_scores(problem: AttentionProblem, decides: bool = True) -> Tensor:
    """[B, H, R, K] scores before the softmax and before any edit, at least float32; -inf on masked keys.

    Args:
        problem: queries, keys and how they are combined.
        decides: compute the products in float32 too, because something is decided by them.
    """
    return scores_with(problem, _DenseProducts(problem.key, problem.value), decides)


def scores_with(problem: AttentionProblem, products: Products, decides: bool) -> Tensor:
    """The same with the products of any store of keys and values; the problem's key need not have all keys."""
    batch, heads, count, head_dim = problem.query.shape
    groups, keys = problem.key.shape[1], products.keys
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    stacked = problem.query.reshape(batch * groups, heads // groups * count, head_dim)
    scores = products.scores(stacked, wide, decides)
    rows = slice(0, count)
    scores = _apply_mask(_finish_scores(scores.view(batch, heads, count, keys), problem, rows), problem, rows)
    if problem.mask is not None and problem.mask.dtype != torch.bool:
        # Eager attention masks with the lowest finite number, which is no score either.
        scores = scores.masked_fill(problem.mask <= LOWEST_SCORE, float("-inf"))
    return scores


def attention_weights(scores: Tensor, sink_logits: Tensor | None) -> Tensor:
    """[B, H, R, K] attention of scores in which every row may see a key, with sink logits [H] or without."""
    return scores.softmax(-1) if sink_logits is None else _softmax_with_sinks(scores, sink_logits)[0]


def _finish_scores(products: Tensor, problem: AttentionProblem, rows: slice) -> Tensor:
    """What the model makes of the products [B, H, R, K]: scaled, capped, with its bias of positions."""
    scores = products * problem.scaling
    if problem.softcap is not None:
        scores = torch.tanh(scores / problem.softcap) * problem.softcap
    return scores if problem.position_bias is None else scores + _rows(problem.position_bias, rows, 2)


def _edit_scores(scores: Tensor, edit: AttentionEdit, rows: slice) -> Tensor:
    """The scores [B, H, R, K] after the score edit, whose terms all start from the scores as they were."""
    changes = []
    if edit.bias is not None:
        changes.append(_rows(edit.bias, rows, 2).to(scores.dtype))
    if edit.gain is not None:
        gain = _rows(edit.gain, rows, 2).to(scores.dtype)
        changes.append(gain * scores[..., : gain.shape[-1]].abs())
    if edit.slope is not None:
        slope = _rows(edit.slope, rows, 2).to(scores.dtype)
        changes.append(slope * scores[..., : slope.shape[-1]])
    for change in changes:
        scores = _add_described(scores, change)
    return scores


def _products(query: Tensor, key: Tensor, wide: torch.dtype, decides: bool) -> Tensor:
    """[N, R, K] products of queries [N, R, D] and keys [N, D, K] in `wide`, at least float32.

    Rounded to half precision they would move masses across the thresholds by which heads and tokens are chosen, so they
    are not where something is decided by them. A GPU keeps its float32 sums for nothing; a CPU has to widen the keys.
    """
    if query.dtype == wide:
        return torch.bmm(query, key)
    if query.is_cuda:
        return torch.bmm(query, key, out_dtype=wide)
    return torch.bmm(query.to(wide), key.to(wide)) if decides else torch.bmm(query, key).to(wide)


def _apply_policy(weights: Tensor, segments: Segments, edit: AttentionEdit, rows: slice) -> tuple[Tensor, Tensor]:
    """The weights [B, H, R, K] after the policy, if there is one, and the masses [B, H, R, 4] before it."""
    batch, heads, count, keys = weights.shape
    one_hot = segments.one_hot_for(keys).to(weights.dtype)
    matrix = _flat_matrix(one_hot, batch, heads)
    masses = torch.bmm(_flat(weights, one_hot), matrix).view(batch, heads, count, SEGMENT_COUNT)
    if edit.policy is None:
        return weights, masses
    factors = edit.policy.weights(masses)
    if edit.policy_rows is not None:
        active = _rows(edit.policy_rows, rows, 1)
        factors = torch.where(active[:, None, :, None], factors, torch.ones_like(factors))
    return weights * torch.bmm(_flat(factors, one_hot), matrix.transpose(1, 2)).view(weights.shape), masses


def _flat(tensor: Tensor, matrix: Tensor) -> Tensor:
    """[B, H, R, N] as [B, H * R, N], or as [B * H, R, N] where the matrix [B or 1, H or 1, ...] is of each head."""
    batch, heads, count, width = tensor.shape
    return tensor.view(batch, heads * count, width) if matrix.shape[1] == 1 else tensor.view(-1, count, width)


def _flat_matrix(matrix: Tensor, batch: int, heads: int) -> Tensor:
    """The matrix [B or 1, H or 1, M, N] as [B, M, N], or as [B * H, M, N] where every head has its own."""
    if matrix.shape[1] == 1:
        matrix = matrix[:, 0]
        return matrix if matrix.shape[0] == batch else matrix.expand(batch, -1, -1)
    return matrix.expand(batch, heads, -1, -1).flatten(0, 1)


def _rows(tensor: Tensor, rows: slice, dim: int) -> Tensor:
    """The block's rows of a tensor whose row dimension may be 1."""
    if tensor.shape[dim] == 1:
        return tensor
    return tensor.narrow(dim, rows.start, rows.stop - rows.start)


def _add_described(scores: Tensor, change: Tensor) -> Tensor:
    missing = scores.shape[-1] - change.shape[-1]
    return scores + (torch.nn.functional.pad(change, (0, missing)) if missing else change)


def _apply_mask(scores: Tensor, problem: AttentionProblem, rows: slice) -> Tensor:
    mask = problem.mask
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + _rows(mask, rows, 2)
    allowed = allowed_keys(problem)
    if allowed is None:
        return scores
    return scores.masked_fill(~_rows(allowed, rows, 2), float("-inf"))


def _softmax_with_sinks(scores: Tensor, sink_logits: Tensor) -> tuple[Tensor, Tensor]:
    logsumexp = torch.logaddexp(scores.logsumexp(-1), sink_logits.to(scores.dtype).reshape(1, -1, 1))
    return (scores - logsumexp[..., None]).exp(), logsumexp


def _edit_output(output: Tensor, problem: AttentionProblem, rows: slice, per_group: int) -> Tensor:
    edit, dtype = problem.edit, output.dtype
    if edit.self_mix is None and edit.head_scale is None:
        return output
    output = output.to(torch.promote_types(dtype, torch.float32))
    if edit.self_mix is not None:
        own = problem.mixed_value()[:, :, rows].repeat_interleave(per_group, 1)
        mix = edit.self_mix[:, :, None, None].to(output.dtype)
        output = (1 - mix) * output + mix * own
    if edit.head_factors is not None:
        output = output * _rows(edit.head_factors, rows, 2).to(output.dtype)
    return output.to(dtype)
