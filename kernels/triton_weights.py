"""Per-key attention weights of chosen rows, from the logsumexp that the attention kernels return.

Only tracing, head selection and heat-maps ask for them; the weights are as large as rows times keys by nature, so
this is a kernel of its own and the attention kernels never hold them.
"""

# ruff: noqa: ANN001, ANN201 (arguments of Triton functions are Triton values, which have no annotations)

import triton
import triton.language as tl

from vlm_guard.kernels.triton_scores import (
    LOG2_E,
    edited_scores,
    finite_or_zero,
    line_number,
    load_keys,
    load_lines,
    load_segments,
)


@triton.jit
def weights_kernel(
    query, query_strides, keys_values, terms, factors, logsumexp, weights,
    groups, edited_rows, key_count, SEGMENTED: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """Edited weights [B, H, R, K] float32; grid (tiles of lines, B * G, chunks of keys)."""
    batch = tl.program_id(1) // groups
    group = tl.program_id(1) % groups
    place = tl.program_id(0) * SHAPE.block_m + tl.arange(0, SHAPE.block_m)
    lines = load_lines(query, query_strides, place, batch, group, edited_rows, key_count, terms, SHAPE)
    keys = tl.program_id(2) * SHAPE.block_n + tl.arange(0, SHAPE.block_n)
    present = keys < key_count
    key_tile = load_keys(keys_values, lines, keys, present, SHAPE)
    products = tl.dot(lines.vectors, key_tile, input_precision="ieee")
    scores = edited_scores(products, terms, lines, keys, present)
    line = line_number(lines, groups, edited_rows, SHAPE)
    normaliser = finite_or_zero(tl.load(logsumexp + line)) * LOG2_E
    of_key = tl.exp2(scores - normaliser[:, None])
    if SEGMENTED:
        segments = load_segments(terms, lines, keys, present, SHAPE)
        of_key *= tl.load(factors + line[:, None] * 4 + segments)
    written = lines.real[:, None] & present[None, :]
    tl.store(weights + line[:, None] * key_count + keys[None, :], of_key, mask=written)
