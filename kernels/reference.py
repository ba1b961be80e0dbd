"""The eager reference that defines the edited attention. Every other backend is measured against it.

It materialises everything, repeats keys for grouped queries and, run in float64, is the ground truth of the error
budgets in the tests. It is not meant to be fast.
"""

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import SEGMENT_COUNT, TEXT, AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, EditedAttention


def reference_attention(problem: AttentionProblem) -> EditedAttention:
    """Edited attention by the definition in `attention_edit`; all but the output and its products at least float32."""
    problem = problem.gathered()
    query, edit = problem.query, problem.edit
    heads_per_group = query.shape[1] // problem.key.shape[1]
    key = problem.key.repeat_interleave(heads_per_group, 1)
    value = problem.value.repeat_interleave(heads_per_group, 1)
    wide = torch.promote_types(query.dtype, torch.float32)

    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * problem.scaling
    if problem.softcap is not None:
        scores = torch.tanh(scores / problem.softcap) * problem.softcap
    if problem.position_bias is not None:
        scores = scores + problem.position_bias
    scores = _edit_scores(scores, edit)
    if problem.mask is not None and problem.mask.dtype != torch.bool:
        scores = scores + problem.mask
    allowed = allowed_keys(problem)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    weights, logsumexp = _softmax(scores, problem.sink_logits)
    masses = None
    if edit.segments is not None:
        given = edit.segments.ids if edit.segments.per_head else edit.segments.ids[:, None]
        ids = torch.full((*query.shape[:2], key.shape[2]), TEXT, dtype=torch.long, device=query.device)
        ids[..., : given.shape[-1]] = given
        masses = torch.stack(
            [(weights * (ids == segment)[:, :, None, :]).sum(-1) for segment in range(SEGMENT_COUNT)], -1
        )
        if edit.policy is not None:
            factors = edit.policy.weights(masses)
            if edit.policy_rows is not None:
                factors = torch.where(edit.policy_rows[:, None, :, None], factors, torch.ones_like(factors))
            weights = weights * factors.gather(-1, ids[:, :, None, :].expand(*weights.shape[:3], -1))

    output = (weights.to(query.dtype) @ value).to(wide)
    if edit.self_mix is not None:
        own = problem.mixed_value().repeat_interleave(heads_per_group, 1).to(wide)
        mix = edit.self_mix[:, :, None, None].to(wide)
        output = (1 - mix) * output + mix * own
    if edit.head_factors is not None:
        output = output * edit.head_factors.to(wide)
    return EditedAttention(
        output=output.to(query.dtype).transpose(1, 2).contiguous(),
        masses=masses,
        weights=weights if problem.return_weights else None,
        logsumexp=logsumexp,
    )


def allowed_keys(problem: AttentionProblem) -> Tensor | None:
    """[B or 1, 1 or H, R, K] bool: which keys a row may attend to; None when it may attend to all."""
    allowed = problem.mask if problem.mask is not None and problem.mask.dtype == torch.bool else None
    if problem.row_positions is not None:
        key_index = torch.arange(problem.key.shape[2], device=problem.key.device)
        causal = key_index <= problem.row_positions[:, None, :, None]
        allowed = causal if allowed is None else allowed & causal
    return allowed


def _edit_scores(scores: Tensor, edit: AttentionEdit) -> Tensor:
    original = scores
    if edit.bias is not None:
        scores = _add_to_described(scores, edit.bias.to(scores.dtype))
    if edit.gain is not None:
        described = original[..., : edit.gain.shape[-1]]
        scores = _add_to_described(scores, edit.gain.to(scores.dtype) * described.abs())
    if edit.slope is not None:
        scores = _add_to_described(scores, edit.slope.to(scores.dtype) * original[..., : edit.slope.shape[-1]])
    return scores


def _add_to_described(scores: Tensor, change: Tensor) -> Tensor:
    described = change.shape[-1]
    return torch.cat((scores[..., :described] + change, scores[..., described:]), -1)


def _softmax(scores: Tensor, sink_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over keys (and the learned sink logits, whose weight is dropped); fully masked rows give zeros.

    A row that a model masks everywhere with its lowest finite number attends evenly. Its logsumexp is that number, next
    to which the logarithm of the number of keys is lost: it says nothing of the weights.
    """
    keys = scores.shape[-1]
    if sink_logits is not None:
        sinks = sink_logits.to(scores.dtype).reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat((scores, sinks), -1)
    logsumexp = scores.logsumexp(-1)
    unseen = (logsumexp == float("-inf"))[..., None]
    return scores.softmax(-1)[..., :keys].masked_fill(unseen, 0), logsumexp
