"""Many query lines: flash attention over chunks listed by segment, sinks gathered, the policy before the store.

Segments of a prompt are nearly contiguous (text, picture, text) and sinks are few. So the chunks that hold text keys
and the chunks that hold visual content are listed once per call, each list is swept by a plain flash loop with its own
running maximum, sum and output, and the few sink keys are gathered into chunks of their own. That costs one product
per chunk and keeps two running outputs alive, not three; a chunk on the border of two segments is swept twice. Sink
scores are computed twice: first for the masses alone, then, with the policy known, for the output.
"""

# ruff: noqa: ANN001, ANN201 (arguments of Triton functions are Triton values, which have no annotations)

import triton
import triton.language as tl

from vlm_guard.kernels.triton_scores import (
    LOG2_E,
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


@triton.jit
def segment_list_kernel(
    segment_ids, strides, id_heads, segment_keys, key_count, lists, CHUNK: tl.constexpr, AT_ONCE: tl.constexpr
):
    """Fill `lists` for one row of segment ids, AT_ONCE chunks of CHUNK keys at a time; grid (rows of ids,)."""
    number = tl.program_id(0)
    chunk_total = lists.chunk_total
    ids_base = segment_ids + batch_offset(strides, number // id_heads)
    if strides[1] is not None:
        ids_base += (number % id_heads).to(tl.int64) * strides[1]
    text_list = lists.text_chunks + number * chunk_total
    content_list = lists.content_chunks + number * chunk_total
    sink_list = lists.sink_keys + number * chunk_total * CHUNK
    counts = lists.counts + number * 3 * (chunk_total + 1)
    tl.store(counts + tl.arange(0, 4) * (chunk_total + 1), tl.zeros((4,), tl.int32), mask=tl.arange(0, 4) < 3)
    text_before = tl.zeros((), tl.int32)
    content_before = tl.zeros((), tl.int32)
    sinks_before = tl.zeros((), tl.int32)
    for start in range(0, chunk_total, AT_ONCE):
        chunks = start + tl.arange(0, AT_ONCE)
        keys = chunks[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        is_key = keys < key_count
        ids = tl.load(ids_base + keys * strides[2], mask=keys < segment_keys, other=0).to(tl.int32)
        has_text = tl.max(((ids == 0) & is_key).to(tl.int32), 1)
        has_content = tl.max(((ids == 3) & is_key).to(tl.int32), 1)
        is_sink = ((ids == 1) | (ids == 2)).to(tl.int32)
        sinks = tl.sum(is_sink, 1)
        text_end = text_before + tl.cumsum(has_text, 0)
        content_end = content_before + tl.cumsum(has_content, 0)
        sinks_end = sinks_before + tl.cumsum(sinks, 0)
        tl.store(text_list + text_end - 1, chunks, mask=has_text > 0)
        tl.store(content_list + content_end - 1, chunks, mask=has_content > 0)
        sink_place = (sinks_end - sinks)[:, None] + tl.cumsum(is_sink, 1) - 1
        tl.store(sink_list + sink_place, keys, mask=is_sink > 0)
        in_list = chunks < chunk_total
        tl.store(counts + 1 + chunks, text_end, mask=in_list)
        tl.store(counts + chunk_total + 2 + chunks, content_end, mask=in_list)
        tl.store(counts + 2 * chunk_total + 3 + chunks, sinks_end, mask=in_list)
        text_before += tl.sum(has_text, 0)
        content_before += tl.sum(has_content, 0)
        sinks_before += tl.sum(sinks, 0)


@triton.jit
def sweep_chunks(lines, keys_values, terms, chunk_list, first, last, SEGMENT: tl.constexpr, SHAPE: tl.constexpr):
    """Flash attention of the lines over entries `first` to `last` of a chunk list, for the keys of one segment only.

    SEGMENT -1 takes every key, and the entries are the chunks themselves. Returns the running maximum [M], sum [M]
    and output [M, block_dv].
    """
    BLOCK_M: tl.constexpr = SHAPE.block_m
    BLOCK_DV: tl.constexpr = SHAPE.block_dv
    running_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    running_sum = tl.zeros((BLOCK_M,), tl.float32)
    output = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    for entry in range(first, last):
        chunk = entry
        if SEGMENT >= 0:
            chunk = tl.load(chunk_list + entry)
        keys = chunk * SHAPE.block_n + tl.arange(0, SHAPE.block_n)
        present = keys < lines.last_key
        key_tile = load_keys(keys_values, lines, keys, present, SHAPE)
        value_tile = load_values(keys_values, lines, keys, present, SHAPE)
        products = tl.dot(lines.vectors, key_tile, input_precision="ieee")
        scores = edited_scores(products, terms, lines, keys, present)
        if SEGMENT >= 0:
            of_key = load_segments(terms, lines, keys, present, SHAPE)
            scores = tl.where(of_key == SEGMENT, scores, float("-inf"))
        running_max, weights, shrink = softmax_step(scores, running_max)
        running_sum = running_sum * shrink + tl.sum(weights, 1)
        output = tl.dot(weights.to(value_tile.dtype), value_tile, output * shrink[:, None], input_precision="ieee")
    return running_max, running_sum, output


@triton.jit
def score_sinks(lines, keys_values, terms, sink_list, start, last, SHAPE: tl.constexpr):
    """The next `block_s` gathered sink keys: (key numbers [S], present [S], segments [1, S], scores [M, S])."""
    entries = start + tl.arange(0, SHAPE.block_s)
    present = entries < last
    keys = tl.load(sink_list + entries, mask=present, other=0)
    key_tile = load_keys(keys_values, lines, keys, present, SHAPE)
    products = tl.dot(lines.vectors, key_tile, input_precision="ieee")
    scores = edited_scores(products, terms, lines, keys, present)
    return keys, present, load_segments(terms, lines, keys, present, SHAPE), scores


@triton.jit
def sum_sinks(lines, keys_values, terms, sink_list, first, last, SHAPE: tl.constexpr):
    """Maximum of the sinks' scores [M], and the sums of the text sinks and of the visual sinks relative to it."""
    BLOCK_M: tl.constexpr = SHAPE.block_m
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    text_sum = tl.zeros((BLOCK_M,), tl.float32)
    visual_sum = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(first, last, SHAPE.block_s):
        _keys, _present, ids, scores = score_sinks(lines, keys_values, terms, sink_list, start, last, SHAPE)
        top, weights, shrink = softmax_step(scores, top)
        text_sum = text_sum * shrink + tl.sum(tl.where(ids == 1, weights, 0), 1)
        visual_sum = visual_sum * shrink + tl.sum(tl.where(ids == 2, weights, 0), 1)
    return top, text_sum, visual_sum


@triton.jit
def add_sinks(
    output, lines, keys_values, terms, sink_list, first, last, shift, text_factor, visual_factor, SHAPE: tl.constexpr
):  # fmt: skip
    """`output` [M, block_dv] plus the sinks' values, weighed by 2^(score - shift) and their segment's factor [M]."""
    for start in range(first, last, SHAPE.block_s):
        keys, present, ids, scores = score_sinks(lines, keys_values, terms, sink_list, start, last, SHAPE)
        factors = tl.where(ids == 1, text_factor[:, None], visual_factor[:, None])
        weights = tl.exp2(scores - shift[:, None]) * factors
        values = load_values(keys_values, lines, keys, present, SHAPE)
        output = tl.dot(weights.to(values.dtype), values, output, input_precision="ieee")
    return output


@triton.jit
def store_partial(
    partials, segment, SEGMENTS: tl.constexpr, lines, maximum, total, output,
    groups, edited_rows, splits, SHAPE: tl.constexpr,
):  # fmt: skip
    """Leave one softmax state per line, that of `segment`, for `merge_kernel`."""
    line = line_number(lines, groups, edited_rows, SHAPE)
    state = (line * splits + tl.program_id(2)) * SEGMENTS + segment
    dims = tl.arange(0, SHAPE.block_dv)[None, :]
    written = (lines.real & (total > 0))[:, None] & (dims < SHAPE.value_dim)
    tl.store(partials.maxima + state, maximum, mask=lines.real)
    tl.store(partials.sums + state, total, mask=lines.real)
    tl.store(partials.outputs + state[:, None] * SHAPE.value_dim + dims, output, mask=written)


@triton.jit
def store_output(output, logsumexp, lines, output_terms, results, groups, edited_rows, SHAPE: tl.constexpr):
    """Apply the output edit to finished lines [M, block_dv] and store them with their logsumexp [M]."""
    dims = tl.arange(0, SHAPE.block_dv)[None, :]
    written = lines.real[:, None] & (dims < SHAPE.value_dim)
    line = line_number(lines, groups, edited_rows, SHAPE)
    tl.store(results.logsumexp + line, logsumexp, mask=lines.real)
    if output_terms.self_mix is not None:
        strides = output_terms.own_value_strides
        own = output_terms.own_value + batch_offset(strides, lines.batch) + lines.group * strides[1]
        pointers = own + lines.rows.to(tl.int64)[:, None] * strides[2] + dims * strides[3]
        own_value = tl.load(pointers, mask=written, other=0).to(tl.float32)
        strides = output_terms.self_mix_strides
        mix = load_per_head(output_terms.self_mix, strides, lines.batch, lines.heads, lines.rows)
        output = (1 - mix)[:, None] * output + mix[:, None] * own_value
    if output_terms.head_scale is not None:
        strides = output_terms.head_scale_strides
        output *= load_per_head(output_terms.head_scale, strides, lines.batch, lines.heads, lines.rows)[:, None]
    target = (lines.batch.to(tl.int64) * edited_rows + lines.rows) * groups * SHAPE.per_group + lines.heads
    pointers = results.output + target[:, None] * SHAPE.value_dim + dims
    tl.store(pointers, output.to(results.output.dtype.element_ty), mask=written)


@triton.jit
def load_sink_logits(weight_terms, heads, SHAPE: tl.constexpr):
    """[M] learned sink logits in units of log2, -inf without any."""
    BLOCK_M: tl.constexpr = SHAPE.block_m
    logits = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if weight_terms.sink_logits is not None:
        logits = tl.load(weight_terms.sink_logits + heads).to(tl.float32) * LOG2_E
    return logits


@triton.jit
def locate(query, query_strides, terms, groups, edited_rows, key_count, splits, SHAPE: tl.constexpr):
    """The lines of this program, and the chunks [first, last) of its split."""
    # The longest causal tiles start first, so that the short ones fill the end of the launch.
    tile_number = tl.num_programs(0) - 1 - tl.program_id(0)
    place = tile_number * SHAPE.block_m + tl.arange(0, SHAPE.block_m)
    batch = tl.program_id(1) // groups
    group = tl.program_id(1) % groups
    lines = load_lines(query, query_strides, place, batch, group, edited_rows, key_count, terms, SHAPE)
    chunks = tl.cdiv(lines.last_key, SHAPE.block_n)
    per_split = tl.cdiv(chunks, splits)
    first = tl.minimum(chunks, tl.program_id(2) * per_split)
    return lines, first, tl.minimum(chunks, first + per_split)


@triton.jit
def plain_prefill_kernel(
    query, query_strides, keys_values, terms, weight_terms, output_terms, results, partials,
    groups, edited_rows, key_count, splits, PARTIAL: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """Edited attention without segments; grid (tiles of lines, B * groups, splits). PARTIAL leaves a merge to do."""
    lines, first, last = locate(query, query_strides, terms, groups, edited_rows, key_count, splits, SHAPE)
    top, total, output = sweep_chunks(lines, keys_values, terms, terms.bias, first, last, -1, SHAPE)
    if PARTIAL:
        store_partial(partials, 0, 1, lines, top, total, output, groups, edited_rows, splits, SHAPE)
    else:
        sink_logits = load_sink_logits(weight_terms, lines.heads, SHAPE)
        shift = finite_or_zero(tl.maximum(top, sink_logits))
        scale = tl.exp2(top - shift)
        total = total * scale + tl.exp2(sink_logits - shift)
        output *= (scale / tl.where(total > 0, total, 1.0))[:, None]
        logsumexp = (tl.log2(total) + shift) / LOG2_E
        store_output(output, logsumexp, lines, output_terms, results, groups, edited_rows, SHAPE)


@triton.jit
def segmented_prefill_kernel(
    query, query_strides, keys_values, terms, weight_terms, output_terms, results, partials, lists,
    groups, edited_rows, key_count, splits, PARTIAL: tl.constexpr, POLICY: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """Edited attention with segments; grid as above. PARTIAL leaves the policy and a merge to do.

    Every line of a tile must have the same segments: with segments of each head, a tile takes one head.
    """
    BLOCK_M: tl.constexpr = SHAPE.block_m
    BLOCK_DV: tl.constexpr = SHAPE.block_dv
    lines, first, last = locate(query, query_strides, terms, groups, edited_rows, key_count, splits, SHAPE)
    list_row = lines.batch * lists.rows_per_batch + lines.first_head * lists.rows_per_head
    text_list = lists.text_chunks + list_row * lists.chunk_total
    content_list = lists.content_chunks + list_row * lists.chunk_total
    sink_list = lists.sink_keys + list_row * lists.chunk_total * SHAPE.block_n
    text_counts = lists.counts + list_row * 3 * (lists.chunk_total + 1)
    content_counts = text_counts + lists.chunk_total + 1
    sink_counts = content_counts + lists.chunk_total + 1
    first_sink, last_sink = tl.load(sink_counts + first), tl.load(sink_counts + last)

    first_entry, last_entry = tl.load(text_counts + first), tl.load(text_counts + last)
    text_top, text, text_output = sweep_chunks(lines, keys_values, terms, text_list, first_entry, last_entry, 0, SHAPE)
    if PARTIAL:
        store_partial(partials, 0, 4, lines, text_top, text, text_output, groups, edited_rows, splits, SHAPE)
    first_entry, last_entry = tl.load(content_counts + first), tl.load(content_counts + last)
    content_top, content, content_output = sweep_chunks(
        lines, keys_values, terms, content_list, first_entry, last_entry, 3, SHAPE
    )
    if PARTIAL:
        store_partial(partials, 3, 4, lines, content_top, content, content_output, groups, edited_rows, splits, SHAPE)
    sink_top, text_sink, visual_sink = sum_sinks(lines, keys_values, terms, sink_list, first_sink, last_sink, SHAPE)
    none = tl.zeros((BLOCK_M,), tl.float32)
    if PARTIAL:
        shift = finite_or_zero(sink_top)
        empty = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
        of_text = add_sinks(
            empty, lines, keys_values, terms, sink_list, first_sink, last_sink, shift, none + 1, none, SHAPE
        )
        store_partial(partials, 1, 4, lines, sink_top, text_sink, of_text, groups, edited_rows, splits, SHAPE)
        of_visual = add_sinks(
            empty, lines, keys_values, terms, sink_list, first_sink, last_sink, shift, none, none + 1, SHAPE
        )
        store_partial(partials, 2, 4, lines, sink_top, visual_sink, of_visual, groups, edited_rows, splits, SHAPE)
    else:
        sink_logits = load_sink_logits(weight_terms, lines.heads, SHAPE)
        shift = tl.maximum(tl.maximum(text_top, content_top), tl.maximum(sink_top, sink_logits))
        shift = finite_or_zero(shift)
        text_scale, content_scale = tl.exp2(text_top - shift), tl.exp2(content_top - shift)
        text, content = text * text_scale, content * content_scale
        text_sink *= tl.exp2(sink_top - shift)
        visual_sink *= tl.exp2(sink_top - shift)
        total = text + text_sink + visual_sink + content + tl.exp2(sink_logits - shift)
        share = 1 / tl.where(total > 0, total, 1.0)
        text, text_sink, visual_sink, content = text * share, text_sink * share, visual_sink * share, content * share
        for_text, for_sinks, for_content = segment_factors(
            text, text_sink, visual_sink, content, weight_terms, lines.batch, lines.heads, lines.rows, POLICY
        )
        line = line_number(lines, groups, edited_rows, SHAPE)
        store_four(results.masses, line, lines, text, text_sink, visual_sink, content)
        if results.factors is not None:
            store_four(results.factors, line, lines, for_text, for_sinks, for_sinks, for_content)
        output = text_output * (text_scale * for_text)[:, None]
        output += content_output * (content_scale * for_content)[:, None]
        output = add_sinks(
            output, lines, keys_values, terms, sink_list, first_sink, last_sink, shift, for_sinks, for_sinks, SHAPE
        )
        logsumexp = (tl.log2(total) + shift) / LOG2_E
        store_output(output * share[:, None], logsumexp, lines, output_terms, results, groups, edited_rows, SHAPE)


@triton.jit
def store_four(target, line, lines, text, text_sink, visual_sink, content):
    """Store the four numbers of every line, [..., 4] float32."""
    tl.store(target + line * 4, text, mask=lines.real)
    tl.store(target + line * 4 + 1, text_sink, mask=lines.real)
    tl.store(target + line * 4 + 2, visual_sink, mask=lines.real)
    tl.store(target + line * 4 + 3, content, mask=lines.real)
