"""A bias of rank one as extra columns of queries and keys, for the stock attention kernels (after FlashBias).

`s_ij + gate_i c_j` with s = scaling * q_i.k_j is again a scaled dot product: q_i gets the columns `gate_i`, k_j the
columns `c_j / scaling`. So an unmodified flash kernel adds c_j to the logit of key j for all rows it computes (a factor
g on the first token's attention is c = ln g there), without a Q x K mask (FlashBias, arXiv 2505.12044).

The columns are padded to a multiple of 8, as the flash kernels want. They are free where the kernel's own padding
already covers them: flash kernels come in widths such as 64, 96, 128 and 192, so D = 80 costs nothing more, while
D = 128 becomes 136 and is computed at the next width.
"""

import torch
from torch import Tensor

# A float32 number is the sum of three bfloat16 (or two float16) numbers; products of parts that lie below float32's
# last place are left out.
_PART_PAIRS = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0))


def low_rank_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_over_keys: Tensor,
    row_gate: Tensor | None,
    head_gate: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values whose plain attention has `row_gate * head_gate * bias_over_keys` added to its scores.

    Args:
        query: [B, H, R, D].
        key: [B, G, K, D].
        value: [B, G, K, Dv].
        bias_over_keys: [B or 1, K] float32, finite, in natural-logarithm units; keys beyond its length get 0.
        row_gate: [B or 1, R] factor of each row, None for 1.
        head_gate: [B or 1, H] factor of each query head, None for 1.
        scaling: the factor of q.k; pass the same one to the attention kernel (its default belongs to D columns).

    Returns:
        query [B, H, R, W], key [B, G, K, W] and value [B, G, K, max(W, Dv)] with W a multiple of 8 and at least D + 6,
        in their dtypes. The first Dv columns of the attention's output are the result, the rest are zeros.

    Raises:
        ValueError: shapes do not fit, or scaling is 0.
    """
    batch, heads, rows, head_dim = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if scaling == 0:
        raise ValueError("low_rank_bias needs a scaling other than 0: the bias is a part of the scaled dot product")
    if bias_over_keys.dim() != 2 or bias_over_keys.shape[0] not in (1, batch) or bias_over_keys.shape[1] > keys:
        raise ValueError(f"bias_over_keys must be [{batch} or 1, at most {keys}], given {list(bias_over_keys.shape)}")
    gate = torch.ones(1, 1, 1, device=query.device)
    if row_gate is not None:
        gate = gate * row_gate.float()[:, None, :]
    if head_gate is not None:
        gate = gate * head_gate.float()[:, :, None]
    gate_columns = torch.stack([_parts(gate, query.dtype)[left] for left, _ in _PART_PAIRS], -1)
    bias = torch.nn.functional.pad(bias_over_keys.float() / scaling, (0, keys - bias_over_keys.shape[1]))
    bias_columns = torch.stack([_parts(bias, key.dtype)[right] for _, right in _PART_PAIRS], -1)[:, None]

    extra = len(_PART_PAIRS)
    width = -(-(head_dim + extra) // 8) * 8
    padding = width - head_dim - extra
    wide_query = torch.cat(
        (query, gate_columns.expand(batch, heads, rows, extra), query.new_zeros(batch, heads, rows, padding)), -1
    )
    wide_key = torch.cat(
        (key, bias_columns.expand(batch, groups, keys, extra), key.new_zeros(batch, groups, keys, padding)), -1
    )
    return wide_query, wide_key, torch.nn.functional.pad(value, (0, max(0, width - value.shape[-1])))


def _parts(numbers: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Three numbers of `dtype` whose sum is the float32 number, to float32's precision."""
    parts = []
    for _ in range(3):
        part = numbers.to(dtype)
        parts.append(part)
        numbers = numbers - part.float()
    return parts
