"""How much attention keys receive, summed over query rows in blocks, so that no whole map is ever held."""

from dataclasses import replace

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.method import AttentionCall

BLOCK_ROWS = 64


def received_attention(call: AttentionCall, counted: Tensor) -> Tensor:
    """[B, H, K] float32: sum of the attention that key j receives from the rows of `call` that are counted.

    Args:
        call: a call with selected rows (R of them); see `AttentionCall.select`.
        counted: [B, R] bool, the rows that count.

    Costs the scores and softmax of those rows once, `BLOCK_ROWS` rows at a time.
    """
    problem = call.problem(AttentionEdit())
    total: Tensor | None = None
    for start in range(0, problem.query.shape[2], BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        block = _block(problem, rows)
        weights = edited_attention(replace(block, return_weights=True), call.state_impl).asked_weights()
        kept = counted[:, rows].to(device=weights.device, dtype=weights.dtype)
        received = torch.einsum("bhrk,br->bhk", weights, kept)
        total = received if total is None else total + received
    if total is None:
        raise ValueError("attention was asked for of no row at all")
    return total.to(torch.float32)


def _block(problem: AttentionProblem, rows: slice) -> AttentionProblem:
    """The same operation for some of its rows."""
    mask, positions, bias = problem.mask, problem.row_positions, problem.position_bias
    return replace(
        problem,
        query=problem.query[:, :, rows],
        mask=mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows],
        row_positions=None if positions is None else positions[:, rows],
        position_bias=bias if bias is None or bias.shape[2] == 1 else bias[:, :, rows],
    )
