"""The Triton backend: attention with the edit inside, in one pass over keys and values.

Few query lines (decode) run `decode_kernel` and `merge_kernel`; many lines (prefill) run a tiled kernel that applies
the policy itself. A policy other than the two built-in ones is applied by a few torch operations on the shares of the
four segments, which the kernels return; that is as exact and still needs no scores. To `torch.compile` the whole call
is one operator, `vlm_guard::segment_attention`.

Limits: float16, bfloat16 or float32; head and value dimension 16 to 256 (they may differ); an NVIDIA GPU of compute
capability 8.0 or later, or Triton's interpreter; no gradients.
"""

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from vlm_guard.kernels.attention_edit import Segments
from vlm_guard.kernels.edited_attention import AttentionProblem, EditedAttention
from vlm_guard.kernels.launch_parameters import (
    AttentionSizes,
    DeviceLimits,
    LaunchParameters,
    choose_launch,
    power_of_two,
)
from vlm_guard.kernels.policies import MoveSinksToContent, MoveSinksToRest, SegmentPolicy
from vlm_guard.kernels.triton_decode import decode_kernel, merge_kernel
from vlm_guard.kernels.triton_prefill import (
    plain_prefill_kernel,
    segment_list_kernel,
    segmented_prefill_kernel,
)
from vlm_guard.kernels.triton_scores import NO_POLICY, OUTSIDE_POLICY, SINKS_TO_CONTENT, SINKS_TO_REST
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
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SMALLEST_DIM, LARGEST_DIM = 16, 256
# What the interpreter pretends to be, so that small problems also split their keys.
INTERPRETER_DEVICE = DeviceLimits(multiprocessors=4, shared_memory=96 * 1024, capability=(8, 0))


def triton_attention(problem: AttentionProblem) -> EditedAttention:
    """Edited attention by the fused kernels; see `AttentionProblem` for shapes.

    Raises:
        ValueError: the problem lies outside the limits above; the message says which and what to use instead.
    """
    reason = unsupported_reason(problem)
    if reason is not None:
        raise ValueError(f"the triton attention backend cannot take this call: {reason}; use impl='torch'")
    edit = problem.edit
    policy_code, constants, policy_heads = _encode_policy(edit.policy)
    run = torch.ops.vlm_guard.segment_attention if torch.compiler.is_compiling() else launch_attention
    output, masses, logsumexp, weights = run(
        problem.query,
        problem.key,
        problem.value,
        problem.scaling,
        problem.softcap,
        problem.mask,
        problem.row_positions,
        problem.sink_logits,
        problem.position_bias,
        problem.own_value,
        edit.bias,
        edit.gain,
        None if edit.segments is None else _ids_by_head(edit.segments),
        policy_code,
        constants,
        policy_heads,
        edit.policy_rows,
        edit.head_scale,
        edit.self_mix,
        problem.return_weights,
    )
    if policy_code == OUTSIDE_POLICY:
        output, weights = _apply_outside_policy(problem, output, masses, weights)
    return EditedAttention(
        output=output,
        masses=None if edit.segments is None else masses,
        weights=weights if problem.return_weights else None,
        logsumexp=logsumexp,
    )


def unsupported_reason(problem: AttentionProblem) -> str | None:
    """Why this backend cannot compute `problem`, or None when it can."""
    query, key, value = problem.query, problem.key, problem.value
    if query.dtype not in DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        return (
            f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}; "
            "they must share float16, bfloat16 or float32"
        )
    for name, size in (("head", query.shape[-1]), ("value", value.shape[-1])):
        if not SMALLEST_DIM <= size <= LARGEST_DIM:
            return f"the {name} dimension is {size}; supported are {SMALLEST_DIM} to {LARGEST_DIM}"
    if query.shape[2] == 0 or key.shape[2] == 0:
        return f"there are {query.shape[2]} rows and {key.shape[2]} keys; at least one of each is needed"
    if not INTERPRETED:
        if query.device.type != "cuda":
            return f"it needs a CUDA device (or Triton's interpreter), the query is on {query.device}"
        if _compute_capability(query.device.index or 0) < (8, 0):
            return "it needs a GPU of compute capability 8.0 or later"
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return "gradients were asked for and the kernels compute none (call it under torch.no_grad)"
    return None


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
    segment_ids: Tensor | None,
    policy_code: int,
    policy_constants: Sequence[float],
    policy_heads: Tensor | None,
    policy_rows: Tensor | None,
    head_scale: Tensor | None,
    self_mix: Tensor | None,
    want_weights: bool,
    parameters: LaunchParameters | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernels on flat arguments (the fields of `AttentionProblem` and `AttentionEdit`).

    Returns:
        output [B, R, H, Dv] (with a policy outside the kernels [B, R, H, 4, Dv] float32, one share per segment),
        masses [B, H, R, 4], logsumexp [B, H, R] and weights [B, H, R, K]; masses and weights are empty when the
        call has no segments or did not ask for them.
    """
    if query.device.type == "cuda" and query.device.index != torch.cuda.current_device():
        with torch.cuda.device(query.device):
            return launch_attention(
                query, key, value, scaling, softcap, mask, row_positions, sink_logits, position_bias, own_value,
                bias, gain, segment_ids, policy_code, policy_constants, policy_heads, policy_rows, head_scale,
                self_mix, want_weights, parameters,
            )  # fmt: skip
    segmented, outside = segment_ids is not None, policy_code == OUTSIDE_POLICY
    batch, heads, rows, head_dim = query.shape
    groups, keys, value_dim = key.shape[1], key.shape[2], value.shape[3]
    if parameters is None:
        sizes = AttentionSizes(
            batch=batch, heads=heads, groups=groups, rows=rows, keys=keys, head_dim=head_dim, value_dim=value_dim,
            element_bytes=query.element_size(), segmented=segmented, outside_policy=outside,
        )  # fmt: skip
        parameters = choose_launch(sizes, INTERPRETER_DEVICE if INTERPRETED else _device_limits(query.device.index))
    widen = INTERPRETED and query.dtype == torch.bfloat16
    per_group = heads // groups
    # Lists of chunks belong to one set of segments, so a prefill tile must not mix heads that have their own.
    per_tile = 1 if segmented and segment_ids.shape[1] > 1 and not parameters.decode else per_group
    shape = Shape(
        per_tile, per_group // per_tile, head_dim, value_dim, power_of_two(head_dim, at_least=16),
        power_of_two(value_dim, at_least=16), parameters.block_m, parameters.block_n, parameters.block_s, widen,
    )  # fmt: skip
    score_terms = ScoreTerms(
        scaling, softcap,
        position_bias, _strides(position_bias, 3),
        bias, _strides(bias, 3), 0 if bias is None else bias.shape[3],
        gain, _strides(gain, 3), 0 if gain is None else gain.shape[3],
        mask, _strides(mask, 3), True if mask is not None and mask.dtype != torch.bool else None,
        row_positions, _strides(row_positions, 1),
        segment_ids, _strides(segment_ids, 2), 0 if segment_ids is None else min(keys, segment_ids.shape[2]),
    )  # fmt: skip
    weight_terms = WeightTerms(*policy_constants, policy_heads, policy_rows, _strides(policy_rows, 1), sink_logits)
    output_terms = OutputTerms(
        head_scale, _strides(head_scale, 2), self_mix, _strides(self_mix, 2),
        own_value, None if own_value is None else own_value.stride(),
    )  # fmt: skip
    keys_values = KeyValues(key, key.stride(), value, value.stride())
    results = _allocate(query, rows, heads, value_dim, segmented, outside, want_weights, widen)
    arguments = (query, query.stride(), keys_values, score_terms)
    _launch(arguments, weight_terms, output_terms, results, policy_code, parameters, shape)

    weights = query.new_empty(0, dtype=torch.float32)
    if want_weights:
        weights = _launch_weights(arguments, results, outside, shape)
    output = results.output.to(query.dtype) if widen and not outside else results.output
    masses = query.new_empty(0, dtype=torch.float32) if results.masses is None else results.masses
    return output, masses, results.logsumexp, weights


def _launch(
    arguments: tuple,
    weight_terms: WeightTerms,
    output_terms: OutputTerms,
    results: Results,
    policy_code: int,
    parameters: LaunchParameters,
    shape: Shape,
) -> None:
    query, _, keys_values, terms = arguments
    batch, heads, rows, _ = query.shape
    groups, keys = heads // shape.per_group, keys_values.key.shape[2]
    segments = 4 if terms.segment_ids is not None else 1
    splits = parameters.splits
    options = {"num_warps": parameters.warps, "num_stages": parameters.stages}
    sizes = (groups, rows, keys, splits)
    partial = parameters.decode or splits > 1 or policy_code == OUTSIDE_POLICY
    partials = _allocate_partials(query, splits * segments, shape.value_dim) if partial else None
    if parameters.decode:
        decode_kernel[(splits, batch * groups)](*arguments, partials, *sizes, SEGMENTS=segments, SHAPE=shape, **options)
    else:
        grid = (triton.cdiv(rows * shape.per_group, shape.block_m), batch * groups, splits)
        if segments > 1:
            lists = _segment_lists(terms, keys, shape.block_n)
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
            STATES=power_of_two(splits * segments), POLICY=policy_code, num_warps=4,
        )  # fmt: skip


def _launch_weights(arguments: tuple, results: Results, outside: bool, shape: Shape) -> Tensor:
    """Per-key weights; with a policy outside the kernels they are not yet multiplied by its factors."""
    query, _, keys_values, terms = arguments
    batch, heads, rows, _ = query.shape
    keys = keys_values.key.shape[2]
    weights = query.new_empty((batch, heads, rows, keys), dtype=torch.float32)
    groups = heads // shape.per_group
    shape = shape._replace(block_m=16, block_n=32)
    grid = (triton.cdiv(rows * shape.per_group, 16), batch * groups, triton.cdiv(keys, 32))
    weights_kernel[grid](
        *arguments, results.factors, results.logsumexp, weights, groups, rows, keys,
        SEGMENTED=terms.segment_ids is not None and not outside, SHAPE=shape, num_warps=4,
    )  # fmt: skip
    return weights


def _segment_lists(terms: ScoreTerms, keys: int, chunk: int) -> SegmentLists:
    ids = terms.segment_ids
    batch, heads, _ = ids.shape
    chunk_total = triton.cdiv(keys, chunk)
    sizes = (chunk_total, chunk_total, chunk_total * chunk, 3 * (chunk_total + 1))
    buffers = ids.new_empty(batch * heads * sum(sizes), dtype=torch.int32)
    lists = SegmentLists(
        *buffers.split([batch * heads * size for size in sizes]),
        chunk_total,
        heads if batch > 1 else 0,
        1 if heads > 1 else 0,
    )
    at_once = min(32, power_of_two(chunk_total))
    segment_list_kernel[(batch * heads,)](
        ids, terms.segment_strides, heads, terms.segment_keys, keys, lists,
        CHUNK=chunk, AT_ONCE=at_once, num_warps=4,
    )  # fmt: skip
    return lists


def _allocate(
    query: Tensor, rows: int, heads: int, value_dim: int, segmented: bool, outside: bool, factors: bool, widen: bool
) -> Results:
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


def _ids_by_head(segments: Segments) -> Tensor:
    """[B or 1, H or 1, P] segment ids."""
    return segments.ids if segments.per_head else segments.ids[:, None]


def _encode_policy(policy: SegmentPolicy | None) -> tuple[int, list[float], Tensor | None]:
    if policy is None:
        return NO_POLICY, [0.0, 0.0, 0.0], None
    if type(policy) is MoveSinksToContent:
        constants = [policy.move_fraction, policy.min_content_share, policy.min_visual_mass]
        return SINKS_TO_CONTENT, [float(constant) for constant in constants], None
    if type(policy) is MoveSinksToRest:
        return SINKS_TO_REST, [float(policy.move_fraction), 0.0, 0.0], policy.heads
    return OUTSIDE_POLICY, [0.0, 0.0, 0.0], None


def _apply_outside_policy(
    problem: AttentionProblem, shares: Tensor, masses: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The policy on the four shares [B, R, H, 4, Dv]: their weighted sum, then the output edit."""
    edit = problem.edit
    factors = edit.policy.weights(masses)
    if edit.policy_rows is not None:
        factors = torch.where(edit.policy_rows[:, None, :, None], factors, torch.ones_like(factors))
    output = (shares * factors.transpose(1, 2)[..., None]).sum(3)
    if edit.self_mix is not None:
        own = problem.own_value.repeat_interleave(problem.query.shape[1] // problem.key.shape[1], 1)
        output = torch.lerp(output, own.transpose(1, 2).float(), edit.self_mix[:, None, :, None].float())
    if edit.head_scale is not None:
        output = output * edit.head_scale[:, None, :, None]
    if problem.return_weights:
        of_key = torch.zeros_like(weights[:, :, 0], dtype=torch.long)
        ids = _ids_by_head(edit.segments)[..., : of_key.shape[-1]]
        of_key[..., : ids.shape[-1]] = ids
        weights = weights * factors.gather(3, of_key[:, :, None].expand_as(weights))
    return output.to(problem.query.dtype), weights


@torch.compiler.assume_constant_result
def _compute_capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@lru_cache
def _device_limits(index: int) -> DeviceLimits:
    properties = torch.cuda.get_device_properties(index)
    return DeviceLimits(
        multiprocessors=properties.multi_processor_count,
        shared_memory=properties.shared_memory_per_block_optin,
        capability=(properties.major, properties.minor),
    )


@torch.library.custom_op("vlm_guard::segment_attention", mutates_args=())
def segment_attention(
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
    segment_ids: Tensor | None,
    policy_code: int,
    policy_constants: Sequence[float],
    policy_heads: Tensor | None,
    policy_rows: Tensor | None,
    head_scale: Tensor | None,
    self_mix: Tensor | None,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`launch_attention` as one operator that `torch.compile` neither looks into nor breaks its graph at."""
    return launch_attention(**locals())


@segment_attention.register_fake
def _segment_attention_shapes(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **keywords: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes and dtypes of what `launch_attention` returns."""
    bound = inspect.signature(launch_attention).bind(query, key, value, *arguments, **keywords).arguments
    segmented, outside = bound["segment_ids"] is not None, bound["policy_code"] == OUTSIDE_POLICY
    batch, heads, rows, _ = query.shape
    results = _allocate(query, rows, heads, value.shape[3], segmented, outside, False, False)
    masses = query.new_empty(0, dtype=torch.float32) if results.masses is None else results.masses
    weights_shape = (batch, heads, rows, key.shape[2]) if bound["want_weights"] else (0,)
    return results.output, masses, results.logsumexp, query.new_empty(weights_shape, dtype=torch.float32)
