"""Launching the Triton kernels: arguments into terms, scratch memory, grids."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
from torch import Tensor

from vlm_guard.kernels.launch_parameters import (
    AttentionSizes,
    DeviceLimits,
    LaunchParameters,
    choose_launch,
    power_of_two,
)
from vlm_guard.kernels.triton_decode import decode_kernel, merge_kernel
from vlm_guard.kernels.triton_prefill import plain_prefill_kernel, segment_list_kernel, segmented_prefill_kernel
from vlm_guard.kernels.triton_scores import OUTSIDE_POLICY
from vlm_guard.kernels.triton_terms import (
    KeyValues,
    OutputTerms,
    Partials,
    Results,
    ScoreTerms,
    SegmentLists,
    Shape,
    Strides,
    WeightTerms,
)
from vlm_guard.kernels.triton_weights import weights_kernel

INTERPRETED = not isinstance(decode_kernel, triton.JITFunction)
# Triton is about to change its default; contracting a * b + c rounds once instead of twice and is what we budget for.
FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}
# What the interpreter pretends to be, so that small problems also split their keys.
INTERPRETER_DEVICE = DeviceLimits(multiprocessors=4, shared_memory=96 * 1024, capability=(8, 0))


def launch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None,
    mask: Tensor | None,
    row_positions: Tensor | None,
    sink_logits: Tensor | None,
    position_bias: Tensor | None,
    own_value: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    slope: Tensor | None,
    segment_ids: Tensor | None,
    policy_code: int,
    policy_constants: Sequence[float],
    policy_heads: Tensor | None,
    policy_rows: Tensor | None,
    head_scale: Tensor | None,
    self_mix: Tensor | None,
    want_weights: bool,
    block_table: Tensor | None = None,
    key_count: int | None = None,
    parameters: LaunchParameters | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernels on flat arguments (the fields of `AttentionProblem` and `AttentionEdit`).

    With a `block_table` the keys and values are blocks, and `key_count` = K of each batch row's are there.

    Returns:
        output [B, R, H, Dv] (with a policy outside the kernels [B, R, H, 4, Dv] float32, one share per segment),
        masses [B, H, R, 4], logsumexp [B, H, R] and weights [B, H, R, K]; masses and weights are empty when the
        call has no segments or did not ask for them.
    """
    if query.device.type == "cuda" and query.device.index != torch.cuda.current_device():
        with torch.cuda.device(query.device):
            return launch_attention(
                query, key, value, scaling, softcap, mask, row_positions, sink_logits, position_bias, own_value,
                bias, gain, slope, segment_ids, policy_code, policy_constants, policy_heads, policy_rows, head_scale,
                self_mix, want_weights, block_table, key_count, parameters,
            )  # fmt: skip
    segmented, outside = segment_ids is not None, policy_code == OUTSIDE_POLICY
    batch, heads, rows, head_dim = query.shape
    groups, value_dim = key.shape[1], value.shape[3]
    keys = key.shape[2] if key_count is None else key_count
    if parameters is None:
        sizes = AttentionSizes(
            batch=batch, heads=heads, groups=groups, rows=rows, keys=keys, head_dim=head_dim, value_dim=value_dim,
            element_bytes=query.element_size(), segmented=segmented, outside_policy=outside,
            in_blocks=block_table is not None,
        )  # fmt: skip
        parameters = choose_launch(sizes, INTERPRETER_DEVICE if INTERPRETED else _device_limits(query.device.index))
    widen = INTERPRETED and query.dtype == torch.bfloat16
    per_group = heads // groups
    # Lists of chunks belong to one set of segments, so a prefill tile must not mix heads that have their own.
    own_segments = segment_ids is not None and segment_ids.shape[1] > 1
    per_tile = 1 if own_segments and not parameters.decode else per_group
    shape = Shape(
        per_tile, per_group // per_tile, head_dim, value_dim, power_of_two(head_dim, at_least=16),
        power_of_two(value_dim, at_least=16), parameters.block_m, parameters.block_n, parameters.block_s, widen,
        0 if block_table is None else key.shape[2],
    )  # fmt: skip
    score_terms = ScoreTerms(
        scaling, softcap,
        position_bias, _strides(position_bias, 3),
        bias, _strides(bias, 3), 0 if bias is None else bias.shape[3],
        gain, _strides(gain, 3), 0 if gain is None else gain.shape[3],
        slope, _strides(slope, 3), 0 if slope is None else slope.shape[3],
        mask, _strides(mask, 3), 1 if mask is not None and mask.dtype != torch.bool else None,
        row_positions, _strides(row_positions, 1),
        segment_ids, _strides(segment_ids, 2), 0 if segment_ids is None else min(keys, segment_ids.shape[2]),
    )  # fmt: skip
    move_fraction, min_content_share, min_visual_mass = policy_constants
    weight_terms = WeightTerms(
        move_fraction, min_content_share, min_visual_mass,
        policy_heads, policy_rows, _strides(policy_rows, 1), sink_logits,
    )  # fmt: skip
    if head_scale is not None and head_scale.dim() == 2:
        head_scale = head_scale[..., None]
    self_mix = None if self_mix is None else self_mix[..., None]
    output_terms = OutputTerms(
        head_scale, _strides(head_scale, 3), self_mix, _strides(self_mix, 3),
        own_value, None if own_value is None else own_value.stride(),
    )  # fmt: skip
    table_strides = None if block_table is None else block_table.stride()
    keys_values = KeyValues(key, key.stride(), value, value.stride(), block_table, table_strides)
    results = allocate_results(query, rows, heads, value_dim, segmented, outside, want_weights, widen)
    arguments = (query, query.stride(), keys_values, score_terms)
    _launch(arguments, keys, weight_terms, output_terms, results, policy_code, parameters, shape)

    weights = query.new_empty(0, dtype=torch.float32)
    if want_weights:
        weights = _launch_weights(arguments, keys, results, outside, shape)
    output = results.output.to(query.dtype) if widen and not outside else results.output
    masses = query.new_empty(0, dtype=torch.float32) if results.masses is None else results.masses
    return output, masses, results.logsumexp, weights


def _launch(
    arguments: tuple,
    keys: int,
    weight_terms: WeightTerms,
    output_terms: OutputTerms,
    results: Results,
    policy_code: int,
    parameters: LaunchParameters,
    shape: Shape,
) -> None:
    query, _, _, terms = arguments
    batch, heads, rows, _ = query.shape
    groups = heads // shape.per_group
    segments = 4 if terms.segment_ids is not None else 1
    splits = parameters.splits
    options = {"num_warps": parameters.warps, "num_stages": parameters.stages, **FUSED_MULTIPLY_ADD}
    sizes = (groups, rows, keys, splits)
    partial = parameters.decode or splits > 1 or policy_code == OUTSIDE_POLICY
    partials = _allocate_partials(query, splits * segments, shape.value_dim) if partial else None
    if parameters.decode:
        decode_kernel[(splits, batch * groups)](*arguments, partials, *sizes, SEGMENTS=segments, SHAPE=shape, **options)
    else:
        grid = (triton.cdiv(rows * shape.per_group, shape.block_m), batch * groups, splits)
        if terms.segment_ids is not None:
            lists = _segment_lists(terms.segment_ids, terms, keys, shape.block_n)
            segmented_prefill_kernel[grid](
                *arguments, weight_terms, output_terms, results, partials, lists, *sizes,
                PARTIAL=partial, POLICY=policy_code, SHAPE=shape, **options,
            )  # fmt: skip
        else:
            plain_prefill_kernel[grid](
                *arguments, weight_terms, output_terms, results, partials, *sizes,
                PARTIAL=partial, SHAPE=shape, **options,
            )  # fmt: skip
    if partial:
        block_dv = min(32, shape.block_dv)
        merge_kernel[(triton.cdiv(shape.value_dim, block_dv), batch * heads * rows)](
            partials, weight_terms, output_terms, results, heads, rows, splits,
            PER_GROUP=shape.per_group * shape.kv_share, VALUE_DIM=shape.value_dim, BLOCK_DV=block_dv, SEGMENTS=segments,
            STATES=power_of_two(splits * segments), POLICY=policy_code, num_warps=4, **FUSED_MULTIPLY_ADD,
        )  # fmt: skip


def _launch_weights(arguments: tuple, keys: int, results: Results, outside: bool, shape: Shape) -> Tensor:
    """Per-key weights; with a policy outside the kernels they are not yet multiplied by its factors."""
    query, _, _, terms = arguments
    batch, heads, rows, _ = query.shape
    weights = query.new_empty((batch, heads, rows, keys), dtype=torch.float32)
    groups = heads // shape.per_group
    shape = shape._replace(block_m=16, block_n=32)
    grid = (triton.cdiv(rows * shape.per_group, 16), batch * groups, triton.cdiv(keys, 32))
    weights_kernel[grid](
        *arguments, results.factors, results.logsumexp, weights, groups, rows, keys,
        SEGMENTED=terms.segment_ids is not None and not outside, SHAPE=shape, num_warps=4, **FUSED_MULTIPLY_ADD,
    )  # fmt: skip
    return weights


def _segment_lists(ids: Tensor, terms: ScoreTerms, keys: int, chunk: int) -> SegmentLists:
    batch, heads, _ = ids.shape
    chunk_total = triton.cdiv(keys, chunk)
    sizes = (chunk_total, chunk_total, chunk_total * chunk, 3 * (chunk_total + 1))
    buffers = ids.new_empty(batch * heads * sum(sizes), dtype=torch.int32)
    text_chunks, content_chunks, sink_keys, counts = buffers.split([batch * heads * size for size in sizes])
    lists = SegmentLists(
        text_chunks,
        content_chunks,
        sink_keys,
        counts,
        chunk_total,
        heads if batch > 1 else 0,
        1 if heads > 1 else 0,
    )
    at_once = min(32, power_of_two(chunk_total))
    segment_list_kernel[(batch * heads,)](
        ids, terms.segment_strides, heads, terms.segment_keys, keys, lists,
        CHUNK=chunk, AT_ONCE=at_once, num_warps=4, **FUSED_MULTIPLY_ADD,
    )  # fmt: skip
    return lists


def allocate_results(
    query: Tensor, rows: int, heads: int, value_dim: int, segmented: bool, outside: bool, factors: bool, widen: bool
) -> Results:
    """Memory for everything the kernels return, uninitialised."""
    batch = query.shape[0]
    dims = (batch, rows, heads, 4, value_dim) if outside else (batch, rows, heads, value_dim)
    statistics = (batch, heads, rows, 4)
    return Results(
        query.new_empty(dims, dtype=torch.float32 if outside or widen else query.dtype),
        query.new_empty(statistics, dtype=torch.float32) if segmented else None,
        query.new_empty(statistics, dtype=torch.float32) if segmented and factors else None,
        query.new_empty((batch, heads, rows), dtype=torch.float32),
    )


def _allocate_partials(query: Tensor, states: int, value_dim: int) -> Partials:
    count = query.shape[0] * query.shape[1] * query.shape[2] * states
    scratch = query.new_empty(count * (value_dim + 2), dtype=torch.float32)
    return Partials(*scratch.split([count * value_dim, count, count]))


def _strides(tensor: Tensor | None, broadcast_dims: int) -> Strides | None:
    """Strides, None where one of the first `broadcast_dims` dimensions is broadcast."""
    if tensor is None:
        return None
    return tuple(
        None if index < broadcast_dims and size == 1 else stride
        for index, (size, stride) in enumerate(zip(tensor.shape, tensor.stride()))
    )


@lru_cache
def _device_limits(index: int) -> DeviceLimits:
    properties = torch.cuda.get_device_properties(index)
    return DeviceLimits(
        multiprocessors=properties.multi_processor_count,
        # torch's stub of the properties leaves this one out; every CUDA build has it.
        shared_memory=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        capability=(properties.major, properties.minor),
    )
