"""Few query lines: keys split over the chip (flash decoding), one softmax state per line and segment, then a merge.

The query lines of a key-value group (its heads times the edited rows) form one tile. The matrix unit wants at least
16 lines and a decode step has one to eight, so the spare lines are put to use: every line appears once per segment
and only sees that segment's keys. One ordinary flash pass then yields the running maximum, sum and output of every
segment with a single product, where separate accumulators would need one product for each segment.
"""

# ruff: noqa: ANN001, ANN201 (arguments of Triton functions are Triton values, which have no annotations)

import triton
import triton.language as tl

from vlm_guard.kernels.triton_scores import (
    LOG2_E,
    OUTSIDE_POLICY,
    batch_offset,
    edited_scores,
    finite_or_zero,
    line_number,
    load_keys,
    load_lines,
    load_per_head,
    load_segments,
    load_values,
    segment_factors,
    softmax_step,
)

_OUTSIDE_POLICY = tl.constexpr(OUTSIDE_POLICY)


@triton.jit
def decode_kernel(
    query,
    query_strides,
    keys_values,
    terms,
    partials,
    groups,
    edited_rows,
    key_count,
    splits,
    SEGMENTS: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """One split of the keys for all query lines of one (batch row, key-value group); grid (splits, B * G).

    SHAPE.block_m counts the lines of the tile with their SEGMENTS copies. Writes `partials`.
    """
    BLOCK_M: tl.constexpr = SHAPE.block_m
    BLOCK_DV: tl.constexpr = SHAPE.block_dv
    split = tl.program_id(0)
    batch = tl.program_id(1) // groups
    group = tl.program_id(1) % groups
    tile = tl.arange(0, SHAPE.block_m)
    segment = tile % SEGMENTS
    lines = load_lines(query, query_strides, tile // SEGMENTS, batch, group, edited_rows, key_count, terms, SHAPE)
    per_split = tl.cdiv(tl.cdiv(lines.last_key, SHAPE.block_n), splits) * SHAPE.block_n
    first = split * per_split
    last = tl.minimum(lines.last_key, first + per_split)

    running_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    running_sum = tl.zeros((BLOCK_M,), tl.float32)
    output = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    for start in range(first, last, SHAPE.block_n):
        keys = start + tl.arange(0, SHAPE.block_n)
        present = keys < last
        key_tile = load_keys(keys_values, lines, keys, present, SHAPE)
        value_tile = load_values(keys_values, lines, keys, present, SHAPE)
        products = tl.dot(lines.vectors, key_tile, input_precision="ieee")
        scores = edited_scores(products, terms, lines, keys, present)
        if SEGMENTS > 1:
            of_key = load_segments(terms, lines, keys, present, SHAPE)
            scores = tl.where(of_key == segment[:, None], scores, float("-inf"))
        running_max, weights, shrink = softmax_step(scores, running_max)
        running_sum = running_sum * shrink + tl.sum(weights, 1)
        output = tl.dot(weights.to(value_tile.dtype), value_tile, output * shrink[:, None], input_precision="ieee")

    line = line_number(lines, groups, edited_rows, SHAPE)
    state = (line * splits + split) * SEGMENTS + segment
    value_dims = tl.arange(0, SHAPE.block_dv)[None, :]
    written = (lines.real & (running_sum > 0))[:, None] & (value_dims < SHAPE.value_dim)
    tl.store(partials.maxima + state, running_max, mask=lines.real)
    tl.store(partials.sums + state, running_sum, mask=lines.real)
    tl.store(partials.outputs + state[:, None] * SHAPE.value_dim + value_dims, output, mask=written)


@triton.jit
def merge_kernel(
    partials,
    weight_terms,
    output_terms,
    results,
    heads,
    edited_rows,
    splits,
    PER_GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SEGMENTS: tl.constexpr,
    STATES: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Merge the splits of one (batch row, head, edited row), apply the policy and the output edit; writes `results`.

    Grid (ceil(Dv / BLOCK_DV), B * H * R); STATES is a power of two, at least splits * SEGMENTS.
    """
    index = tl.program_id(1).to(tl.int64)
    row = index % edited_rows
    head = (index // edited_rows) % heads
    batch = index // (edited_rows * heads)
    states = tl.arange(0, STATES)
    segment = states % SEGMENTS
    place = index * splits * SEGMENTS + states
    maxima = tl.load(partials.maxima + place, mask=states < splits * SEGMENTS, other=float("-inf"))
    sums = tl.load(partials.sums + place, mask=states < splits * SEGMENTS, other=0)
    top = tl.max(maxima, 0)
    sink_logit = tl.full((), float("-inf"), tl.float32)
    if weight_terms.sink_logits is not None:
        sink_logit = tl.load(weight_terms.sink_logits + head).to(tl.float32) * LOG2_E
        top = tl.maximum(top, sink_logit)
    shift = finite_or_zero(top)
    scale = tl.exp2(maxima - shift)
    sums = sums * scale
    total = tl.sum(sums, 0) + tl.exp2(sink_logit - shift)
    share = 1 / tl.where(total > 0, total, 1.0)
    factor = tl.full((STATES,), 1.0, tl.float32)
    tl.store(results.logsumexp + index, (tl.log2(total) + shift) / LOG2_E, mask=tl.program_id(0) == 0)
    if SEGMENTS > 1:
        text = tl.sum(tl.where(segment == 0, sums, 0), 0) * share
        text_sink = tl.sum(tl.where(segment == 1, sums, 0), 0) * share
        visual_sink = tl.sum(tl.where(segment == 2, sums, 0), 0) * share
        content = tl.sum(tl.where(segment == 3, sums, 0), 0) * share
        for_text, for_sinks, for_content = segment_factors(
            text, text_sink, visual_sink, content, weight_terms, batch, head, row, POLICY
        )
        factor = tl.where(segment == 0, for_text, tl.where(segment == 3, for_content, for_sinks))
        mass = tl.where(segment == 0, text, tl.where(segment == 3, content, text_sink))
        mass = tl.where(segment == 2, visual_sink, mass)
        first_states = states + 4 * tl.program_id(0) < 4  # the first split's, by the first program of the row only
        tl.store(results.masses + index * 4 + states, mass, mask=first_states)
        if results.factors is not None:
            tl.store(results.factors + index * 4 + states, factor, mask=first_states)

    value_dims = tl.program_id(0) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    in_value = value_dims < VALUE_DIM
    written = (sums > 0)[:, None] & in_value[None, :]
    parts = tl.load(partials.outputs + place[:, None] * VALUE_DIM + value_dims[None, :], mask=written, other=0)
    parts *= (factor * scale * share)[:, None]
    target = (batch * edited_rows + row) * heads + head
    if POLICY == _OUTSIDE_POLICY:
        for number in tl.static_range(SEGMENTS):
            of_segment = tl.sum(tl.where((segment == number)[:, None], parts, 0), 0)
            pointers = results.output + (target * SEGMENTS + number) * VALUE_DIM + value_dims
            tl.store(pointers, of_segment, mask=in_value)
    else:
        merged = tl.sum(parts, 0)
        if output_terms.self_mix is not None:
            strides = output_terms.own_value_strides
            own = output_terms.own_value + batch_offset(strides, batch) + (head // PER_GROUP) * strides[1]
            own_value = tl.load(own + row * strides[2] + value_dims * strides[3], mask=in_value, other=0)
            mix = load_per_head(output_terms.self_mix, output_terms.self_mix_strides, batch, head, row)
            merged = (1 - mix) * merged + mix * own_value.to(tl.float32)
        if output_terms.head_scale is not None:
            strides = output_terms.head_scale_strides
            merged *= load_per_head(output_terms.head_scale, strides, batch, head, row)
        pointers = results.output + target * VALUE_DIM + value_dims
        tl.store(pointers, merged.to(results.output.dtype.element_ty), mask=in_value)
