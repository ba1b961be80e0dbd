"""Shared pieces of the Triton kernels: reading tiles, the edited score of a key, the factors of a policy.

All scores are kept in units of log2, so that the exponential is one hardware instruction (`exp2`).
"""

# ruff: noqa: ANN001, ANN201 (arguments of Triton functions are Triton values, which have no annotations)

import triton
import triton.language as tl

from vlm_guard.kernels.triton_terms import Lines

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST_FLOAT32 = tl.constexpr(-3.4028234663852886e38)

NO_POLICY, SINKS_TO_CONTENT, SINKS_TO_REST, OUTSIDE_POLICY = 0, 1, 2, 3
_SINKS_TO_CONTENT = tl.constexpr(SINKS_TO_CONTENT)
_SINKS_TO_REST = tl.constexpr(SINKS_TO_REST)


@triton.jit
def batch_offset(strides, batch):
    """Offset of a batch row, 0 where the batch dimension is broadcast."""
    offset = tl.zeros((), tl.int64)
    if strides[0] is not None:
        offset += batch.to(tl.int64) * strides[0]
    return offset


@triton.jit
def load_lines(query, strides, place, batch, group, edited_rows, key_count, terms, SHAPE: tl.constexpr):
    """The query lines number `place` [M] of a group of heads (line = row * per_group + head within the group)."""
    total = edited_rows * SHAPE.per_group
    line = tl.minimum(place, total - 1)
    rows = line // SHAPE.per_group
    heads = group * SHAPE.per_group + line % SHAPE.per_group
    positions = tl.zeros_like(rows)
    last_key = key_count
    if terms.row_positions is not None:
        pointer = terms.row_positions + batch_offset(terms.row_position_strides, batch)
        positions = tl.load(pointer + rows * terms.row_position_strides[1]).to(tl.int32)
        # A static cache is longer than what it holds: only the keys some line may see are read.
        last_key = tl.minimum(key_count, tl.max(positions, 0) + 1)
    dims = tl.arange(0, SHAPE.block_d)
    offsets = heads.to(tl.int64) * strides[1] + rows.to(tl.int64) * strides[2]
    pointers = query + batch.to(tl.int64) * strides[0] + offsets[:, None] + dims[None, :] * strides[3]
    vectors = tl.load(pointers, mask=dims[None, :] < SHAPE.head_dim, other=0)
    if SHAPE.widen:
        vectors = vectors.to(tl.float32)
    return Lines(
        vectors,
        batch,
        group // SHAPE.kv_share,
        group * SHAPE.per_group,
        heads,
        rows,
        positions,
        place < total,
        last_key,
    )


@triton.jit
def line_number(lines, groups, edited_rows, SHAPE: tl.constexpr):
    """[M] int64 place of each line in a [B, H, R] tensor."""
    heads_total = groups * SHAPE.per_group
    return (lines.batch.to(tl.int64) * heads_total + lines.heads) * edited_rows + lines.rows


@triton.jit
def key_pointers(part, strides, keys_values, lines, keys, present, SHAPE: tl.constexpr):
    """[N] pointers to where the numbered keys (or values) of the tile's batch row and group begin."""
    base = part + lines.group.to(tl.int64) * strides[1]
    if keys_values.block_table is not None:
        table = keys_values.block_table + lines.batch.to(tl.int64) * keys_values.block_table_strides[0]
        places = keys // SHAPE.block_size * keys_values.block_table_strides[1]
        blocks = tl.load(table + places, mask=present, other=0).to(tl.int64)
        return base + blocks * strides[0] + keys % SHAPE.block_size * strides[2]
    return base + lines.batch.to(tl.int64) * strides[0] + keys * strides[2]


@triton.jit
def load_keys(keys_values, lines, keys, present, SHAPE: tl.constexpr):
    """The vectors of the numbered keys, transposed: [block_d, N], zeros where `present` is false."""
    dims = tl.arange(0, SHAPE.block_d)
    strides = keys_values.key_strides
    begin = key_pointers(keys_values.key, strides, keys_values, lines, keys, present, SHAPE)
    pointers = begin[None, :] + dims[:, None] * strides[3]
    if SHAPE.head_dim == SHAPE.block_d:
        tile = tl.load(pointers, mask=present[None, :], other=0)
    else:
        tile = tl.load(pointers, mask=present[None, :] & (dims[:, None] < SHAPE.head_dim), other=0)
    if SHAPE.widen:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_values(keys_values, lines, keys, present, SHAPE: tl.constexpr):
    """The values of the numbered keys: [N, block_dv], zeros where `present` is false."""
    dims = tl.arange(0, SHAPE.block_dv)
    strides = keys_values.value_strides
    begin = key_pointers(keys_values.value, strides, keys_values, lines, keys, present, SHAPE)
    pointers = begin[:, None] + dims[None, :] * strides[3]
    if SHAPE.value_dim == SHAPE.block_dv:
        tile = tl.load(pointers, mask=present[:, None], other=0)
    else:
        tile = tl.load(pointers, mask=present[:, None] & (dims[None, :] < SHAPE.value_dim), other=0)
    if SHAPE.widen:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_segments(terms, lines, keys, present, SHAPE: tl.constexpr):
    """[1 or M, N] int32 segment of each numbered key for each line; 0 (text) for keys that are not described."""
    base = terms.segment_ids + batch_offset(terms.segment_strides, lines.batch)
    columns = keys[None, :] * terms.segment_strides[2]
    described = (present & (keys < terms.segment_keys))[None, :]
    if terms.segment_strides[1] is not None:
        if SHAPE.per_group == 1:
            base += lines.first_head.to(tl.int64) * terms.segment_strides[1]
        else:
            columns = columns + lines.heads[:, None] * terms.segment_strides[1]
    return tl.load(base + columns, mask=described, other=0).to(tl.int32)


@triton.jit
def load_term(term, strides, lines, keys, present):
    """Read a [B, H, R, keys] term for a tile of query lines and keys: [1 or M, N] float32, 0 where not `present`."""
    base = term + batch_offset(strides, lines.batch)
    columns = keys[None, :] * strides[3]
    if strides[1] is None and strides[2] is None:
        values = tl.load(base + columns, mask=present[None, :], other=0)
    else:
        offsets = tl.zeros_like(lines.rows).to(tl.int64)
        if strides[1] is not None:
            offsets += lines.heads.to(tl.int64) * strides[1]
        if strides[2] is not None:
            offsets += lines.rows.to(tl.int64) * strides[2]
        values = tl.load(base + offsets[:, None] + columns, mask=present[None, :], other=0)
    return values.to(tl.float32)


@triton.jit
def soft_cap(x):
    """tanh: a polynomial near 0, where the exponential form loses its digits, the exponential form elsewhere."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    decay = tl.exp2(tl.abs(x) * (-2 * LOG2_E))
    saturating = (1 - decay) / (1 + decay)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -saturating, saturating))


@triton.jit
def edited_scores(products, terms, lines, keys, present):
    """Edited scores in units of log2 of a tile of query lines and keys.

    Args:
        products: [M, N] float32, q.k.
        terms: see `ScoreTerms`.
        lines: see `Lines`.
        keys: [N] key number of each column.
        present: [N] whether the column takes part at all.

    Returns:
        [M, N] float32, -inf where the line may not attend to the key.
    """
    if terms.softcap is not None:
        scores = soft_cap(products * (terms.scaling / terms.softcap)) * (terms.softcap * LOG2_E)
    else:
        scores = products * (terms.scaling * LOG2_E)
    if terms.position_bias is not None:
        scores += load_term(terms.position_bias, terms.position_bias_strides, lines, keys, present) * LOG2_E
    original = scores
    if terms.bias is not None:
        described = present & (keys < terms.bias_keys)
        scores += load_term(terms.bias, terms.bias_strides, lines, keys, described) * LOG2_E
    if terms.gain is not None:
        described = present & (keys < terms.gain_keys)
        scores += load_term(terms.gain, terms.gain_strides, lines, keys, described) * tl.abs(original)
    if terms.slope is not None:
        described = present & (keys < terms.slope_keys)
        scores += load_term(terms.slope, terms.slope_strides, lines, keys, described) * original
    allowed = present[None, :]
    if terms.mask is not None:
        mask = load_term(terms.mask, terms.mask_strides, lines, keys, present)
        if terms.mask_is_float is not None:
            # A model's "minus infinity" may be the lowest finite number, which must not overflow to -inf here: a row
            # that is masked everywhere then attends evenly, as it does in eager attention.
            scores += tl.where(mask < LOWEST_FLOAT32, mask, tl.maximum(mask, LOWEST_FLOAT32 / LOG2_E) * LOG2_E)
        else:
            allowed = allowed & (mask != 0)
    if terms.row_positions is not None:
        allowed = allowed & (keys[None, :] <= lines.positions[:, None])
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def finite_or_zero(maximum):
    """The maximum to subtract: 0 where nothing was seen, so that 2^(-inf - 0) is 0 and not NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def softmax_step(scores, running_max):
    """One online-softmax step: (new maximum, p = 2^(s - max), factor of everything accumulated before)."""
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    shift = finite_or_zero(new_max)
    return new_max, tl.exp2(scores - shift[:, None]), tl.exp2(running_max - shift)


@triton.jit
def segment_factors(text, text_sink, visual_sink, content, terms, batch, head, row, POLICY: tl.constexpr):
    """Masses of the four segments -> (text, sinks, content) factors: the formulas of the two built-in policies."""
    sinks = text_sink + visual_sink
    ones = text * 0 + 1
    text_factor, sink_factor, content_factor = ones, ones, ones
    if POLICY == _SINKS_TO_CONTENT:
        visual = visual_sink + content
        selected = (visual >= terms.min_visual_mass) & (content >= terms.min_content_share * visual)
        selected = selected & (visual_sink > 0) & (content > 0)
        gained = terms.move_fraction * sinks / tl.where(selected, content, 1.0)
        sink_factor = tl.where(selected, 1 - terms.move_fraction, 1.0)
        content_factor = tl.where(selected, 1 + gained, 1.0)
    if POLICY == _SINKS_TO_REST:
        rest = text + content
        selected = (rest > 0) & (sinks > 0)
        if terms.policy_heads is not None:
            selected = selected & (tl.load(terms.policy_heads + head) != 0)
        gained = terms.move_fraction * sinks / tl.where(selected, rest, 1.0)
        sink_factor = tl.where(selected, 1 - terms.move_fraction, 1.0)
        text_factor = tl.where(selected, 1 + gained, 1.0)
        content_factor = text_factor
    if terms.policy_rows is not None:
        pointer = terms.policy_rows + batch_offset(terms.policy_row_strides, batch)
        active = tl.load(pointer + row * terms.policy_row_strides[1]) != 0
        text_factor = tl.where(active, text_factor, 1.0)
        sink_factor = tl.where(active, sink_factor, 1.0)
        content_factor = tl.where(active, content_factor, 1.0)
    return text_factor, sink_factor, content_factor


@triton.jit
def load_per_head(tensor, strides, batch, head, row):
    """A [B or 1, H or 1, R or 1] tensor, float32, in the shape of `head` and `row` also where one value serves all."""
    offset = head * 0
    if strides[1] is not None:
        offset = head * strides[1]
    if strides[2] is not None:
        offset = offset + row * strides[2]
    return tl.load(tensor + batch_offset(strides, batch) + offset).to(tl.float32)
