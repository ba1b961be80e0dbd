"""What the Triton kernels are given: tuples of tensors with their strides, and the sizes of a tile.

A term that is not there is None, and so is the stride of a broadcast dimension. Both are compile-time facts for
Triton, so an absent term costs nothing and a bias shared by all heads and rows is read once per key.
"""

from typing import Any, NamedTuple

from torch import Tensor

Strides = tuple[Any, ...]


class KeyValues(NamedTuple):
    """Keys [B, G, K, D] and values [B, G, K, Dv], read in place by their strides.

    With a `block_table` [B, n] they are [blocks, G, block size, ...], and the table says whose blocks these are.
    """

    key: Tensor
    key_strides: Strides
    value: Tensor
    value_strides: Strides
    block_table: Tensor | None
    block_table_strides: Strides | None


class ScoreTerms(NamedTuple):
    """Everything that turns q.k into an edited score.

    `position_bias`, `bias`, `gain`, `slope` and `mask` are [B or 1, H or 1, R or 1, keys]; `row_positions` is
    [B or 1, R] and `segment_ids` [B or 1, H or 1, keys]. `bias_keys`, `gain_keys`, `slope_keys` and `segment_keys` say
    how many keys are described; the rest is text without bias, gain and slope. `mask_is_float` is 1 or None.
    """

    scaling: float
    softcap: float | None
    position_bias: Tensor | None
    position_bias_strides: Strides | None
    bias: Tensor | None
    bias_strides: Strides | None
    bias_keys: int
    gain: Tensor | None
    gain_strides: Strides | None
    gain_keys: int
    slope: Tensor | None
    slope_strides: Strides | None
    slope_keys: int
    mask: Tensor | None
    mask_strides: Strides | None
    mask_is_float: int | None  # no bool: the interpreter of Triton 3.7 takes none inside a tuple
    row_positions: Tensor | None
    row_position_strides: Strides | None
    segment_ids: Tensor | None
    segment_strides: Strides | None
    segment_keys: int


class WeightTerms(NamedTuple):
    """The weight edit: constants of the policy, its heads [H] and rows [B or 1, R] (bool), and [H] sink logits."""

    move_fraction: float
    min_content_share: float
    min_visual_mass: float
    policy_heads: Tensor | None
    policy_rows: Tensor | None
    policy_row_strides: Strides | None
    sink_logits: Tensor | None


class OutputTerms(NamedTuple):
    """The output edit: head scale [B or 1, H, R or 1], self mix [B or 1, H, 1], the rows' own values [B, G, R, Dv]."""

    head_scale: Tensor | None
    head_scale_strides: Strides | None
    self_mix: Tensor | None
    self_mix_strides: Strides | None
    own_value: Tensor | None
    own_value_strides: Strides | None


class Results(NamedTuple):
    """Where the finished numbers go.

    output [B, R, H, Dv] in the query's dtype (for a policy outside the kernel: [B, R, H, 4, Dv] float32, one share per
    segment), masses and factors [B, H, R, 4] and logsumexp [B, H, R] float32; `factors` only when asked for.
    """

    output: Tensor
    masses: Tensor | None
    factors: Tensor | None
    logsumexp: Tensor


class Partials(NamedTuple):
    """Unmerged softmax states of every split and segment, float32.

    maxima and sums [B, H, R, splits, S], outputs [B, H, R, splits, S, Dv]; an output whose sum is 0 is not written.
    """

    outputs: Tensor
    maxima: Tensor
    sums: Tensor


class SegmentLists(NamedTuple):
    """Chunks and sink keys by segment, int32, for each row of segment ids (C chunks).

    text_chunks and content_chunks [rows, C], sink_keys [rows, C * chunk length]; counts [rows, 3, C + 1] says how many
    entries of each list lie before a chunk. The row of a batch row and head is batch * rows_per_batch + head *
    rows_per_head, where a factor of 0 means that one row serves all.
    """

    text_chunks: Tensor
    content_chunks: Tensor
    sink_keys: Tensor
    counts: Tensor
    chunk_total: int
    rows_per_batch: int
    rows_per_head: int


class Shape(NamedTuple):
    """Compile-time sizes of a tile. Blocks are powers of two, at least the dimension they hold.

    A tile takes its query lines from `per_group` heads; `kv_share` such tiles read the same keys (1 where a tile takes
    all heads of a key-value group, the heads per group where it takes one). `block_m` query lines, `block_n` keys of a
    chunk, `block_s` gathered sink keys; `widen` turns every loaded tile to float32 (the interpreter has no bfloat16
    arithmetic). `block_size` keys of a block of the cache; 0 without a block table.
    """

    per_group: int
    kv_share: int
    head_dim: int
    value_dim: int
    block_d: int
    block_dv: int
    block_m: int
    block_n: int
    block_s: int
    widen: bool
    block_size: int


class Lines(NamedTuple):
    """The query lines of one tile: vectors [M, D] of `batch`, with heads, rows and positions [M] of each.

    They read the key-value group `group`, their first head is `first_head`, only `real` lines are stored, and no line
    may see a key from `last_key` on.
    """

    vectors: Any
    batch: Any
    group: Any
    first_head: Any
    heads: Any
    rows: Any
    positions: Any
    real: Any
    last_key: Any
