"""The Triton backend: attention with the edit inside, in one pass over keys and values.

Few query lines (decode) run `decode_kernel` and `merge_kernel`; many lines (prefill) run a tiled kernel that applies
the policy itself. A policy other than the two built-in ones is applied by a few torch operations on the shares of the
four segments, which the kernels return; that is as exact and still needs no scores. To `torch.compile` the whole call
is one operator, `vlm_guard::segment_attention`.

Limits: float16, bfloat16 or float32; head and value dimension 16 to 256 (they may differ); an NVIDIA GPU of compute
capability 8.0 or later, or Triton's interpreter; Triton 3.7 or later; no gradients.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from vlm_guard.kernels.attention_edit import Segments
from vlm_guard.kernels.edited_attention import AttentionProblem, EditedAttention
from vlm_guard.kernels.policies import MoveSinksToContent, MoveSinksToRest, SegmentPolicy
from vlm_guard.kernels.triton_launch import INTERPRETED, allocate_results, launch_attention
from vlm_guard.kernels.triton_scores import NO_POLICY, OUTSIDE_POLICY, SINKS_TO_CONTENT, SINKS_TO_REST

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SMALLEST_DIM, LARGEST_DIM = 16, 256
# Triton 3.5 and 3.6 cannot compile a stride of 1 inside a tuple argument; 3.7 and 3.9 were tried.
OLDEST_TRITON = (3, 7)
TRITON_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


def triton_attention(problem: AttentionProblem) -> EditedAttention:
    """Edited attention by the fused kernels; see `AttentionProblem` for shapes.

    Raises:
        ValueError: the problem lies outside the limits above; the message says which and what to use instead.
    """
    reason = unsupported_reason(problem)
    if reason is not None:
        raise ValueError(
            f"the triton attention backend cannot take this call: {reason}; use attention_backend='torch' "
            "(impl='torch' where edited_attention is called by itself)"
        )
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
        edit.slope,
        None if edit.segments is None else _ids_by_head(edit.segments),
        policy_code,
        constants,
        policy_heads,
        edit.policy_rows,
        edit.head_scale,
        edit.self_mix,
        problem.return_weights,
        None if problem.blocks is None else problem.blocks.table,
        None if problem.blocks is None else problem.blocks.keys,
    )
    if policy_code == OUTSIDE_POLICY and edit.policy is not None and edit.segments is not None:
        output, weights = _apply_outside_policy(problem, edit.policy, edit.segments, output, masses, weights)
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
    if query.shape[2] == 0 or problem.key_count == 0:
        return f"there are {query.shape[2]} rows and {problem.key_count} keys; at least one of each is needed"
    if TRITON_VERSION < OLDEST_TRITON:
        return f"Triton {triton.__version__} cannot compile the kernels; 3.7 or later is needed"
    if not INTERPRETED:
        if query.device.type != "cuda":
            return f"it needs a CUDA device (or Triton's interpreter), the query is on {query.device}"
        if torch.version.hip:
            return "it is written for NVIDIA GPUs, and this build of torch drives AMD ones"
        if _compute_capability(query.device.index or 0) < (8, 0):
            return "it needs a GPU of compute capability 8.0 or later"
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return "gradients were asked for and the kernels compute none (call it under torch.no_grad)"
    return None


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
    problem: AttentionProblem,
    policy: SegmentPolicy,
    segments: Segments,
    shares: Tensor,
    masses: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The policy on the four shares [B, R, H, 4, Dv]: their weighted sum, then the output edit."""
    edit = problem.edit
    factors = policy.weights(masses)
    if edit.policy_rows is not None:
        factors = torch.where(edit.policy_rows[:, None, :, None], factors, torch.ones_like(factors))
    output = (shares * factors.transpose(1, 2)[..., None]).sum(3)
    if edit.self_mix is not None:
        own = problem.mixed_value().repeat_interleave(problem.query.shape[1] // problem.key.shape[1], 1)
        output = torch.lerp(output, own.transpose(1, 2).float(), edit.self_mix[:, None, :, None].float())
    if edit.head_factors is not None:
        output = output * edit.head_factors.transpose(1, 2)
    if problem.return_weights:
        of_key = torch.zeros_like(weights[:, :, 0], dtype=torch.long)
        ids = _ids_by_head(segments)[..., : of_key.shape[-1]]
        of_key[..., : ids.shape[-1]] = ids
        weights = weights * factors.gather(3, of_key[:, :, None].expand_as(weights))
    return output.to(problem.query.dtype), weights


@torch.compiler.assume_constant_result
def _compute_capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


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
    results = allocate_results(query, rows, heads, value.shape[3], segmented, outside, False, False)
    masses = query.new_empty(0, dtype=torch.float32) if results.masses is None else results.masses
    keys = key.shape[2] if bound.get("key_count") is None else bound["key_count"]
    weights_shape = (batch, heads, rows, keys) if bound["want_weights"] else (0,)
    return results.output, masses, results.logsumexp, query.new_empty(weights_shape, dtype=torch.float32)
