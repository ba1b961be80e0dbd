"""What may be changed inside one attention call: scores, weights and outputs.

For query row i of query head h and key j, with s = scaling * q_i.k_j (after the model's own softcap and position
bias) and segment g(j) of the key, an edit changes, in this order,

    score edit    s'_ij = s_ij + bias[h, j] + gain[h, j] * |s_ij| + slope[h, j] * s_ij
    weight edit   a_i = softmax(s'_i);  m[g] = sum of a_ij over segment g;  a'_ij = a_ij * policy(m)[g(j)]
    output edit   o_i = head_scale[h] * ((1 - self_mix[h]) * sum_j a'_ij v_j + self_mix[h] * v_i)

Masked keys take no part. Shapes use B batch, H query heads, G key-value heads, R edited rows, K keys, P described
keys (P <= K: keys from P on are ordinary text with bias, gain and slope 0), D head dimension.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.kernels.policies import LinearForm, LinearPolicy, SegmentPolicy

TEXT, TEXT_SINK, VISUAL_SINK, VISUAL_CONTENT = 0, 1, 2, 3
SEGMENT_NAMES = ("text", "text sink", "visual sink", "visual content")
SEGMENT_COUNT = len(SEGMENT_NAMES)
_SPARE_KEYS = 256


class Segments:
    """The segment of every described key, with the one-hot form the torch backend multiplies by.

    Args:
        ids: [B or 1, P] uint8, values from `SEGMENT_NAMES`; [B or 1, H, P] where every head has its own.
    """

    def __init__(self, ids: Tensor) -> None:
        if ids.dim() not in (2, 3) or ids.dtype != torch.uint8:
            raise TypeError(f"segment ids must be uint8 [B, P] or [B, H, P], given {ids.dtype} {list(ids.shape)}")
        self.ids = ids
        self._one_hot: Tensor | None = None
        self._padded: Tensor | None = None
        self._folded: tuple[LinearPolicy, LinearForm, Tensor, Tensor] | None = None

    @classmethod
    def build(cls, visual_mask: Tensor, sink_mask: Tensor | None = None) -> "Segments":
        """Segments from a visual mask and an optional sink mask, both bool [B, P]."""
        ids = visual_mask.to(torch.uint8) * VISUAL_CONTENT
        if sink_mask is not None:
            sink_ids = torch.where(visual_mask, VISUAL_SINK, TEXT_SINK).to(torch.uint8)
            ids = torch.where(sink_mask, sink_ids, ids)
        return cls(ids)

    @property
    def one_hot(self) -> Tensor:
        """[B or 1, H or 1, P, 4] float32, one where key j belongs to segment g; made once."""
        # Not functools.cached_property: its lock (until Python 3.12) would break the graph of a compiled step.
        if self._one_hot is None:
            one_hot = torch.nn.functional.one_hot(self.ids.long(), SEGMENT_COUNT).to(torch.float32)
            self._one_hot = one_hot if self.per_head else one_hot[:, None]
        return self._one_hot

    def one_hot_for(self, keys: int) -> Tensor:
        """[B or 1, H or 1, K, 4] float32 for `keys` = K keys; those behind the described ones are text.

        A growing cache asks for one key more at every step, so the text rows are made in steps of `_SPARE_KEYS`.
        """
        return self._padded_for(keys)[..., :keys, :]

    def _padded_for(self, keys: int) -> Tensor:
        """The one-hot form with text rows behind it, at least `keys` rows in all."""
        if self._padded is None or self._padded.shape[-2] < keys:
            missing = max(0, keys - self.one_hot.shape[-2]) + _SPARE_KEYS
            spare = torch.zeros_like(self.one_hot[..., :1, :]).repeat_interleave(missing, -2)
            spare[..., TEXT] = 1
            self._padded = torch.cat((self.one_hot, spare), -2)
            self._folded = None
        return self._padded

    def folded(self, policy: LinearPolicy, keys: int, dtype: torch.dtype) -> tuple[LinearForm, Tensor, Tensor]:
        """A policy's form, its combinations [B or 1, H or 1, K, 5] and its spread [B or 1, H or 1, 2, K] over keys."""
        padded = self._padded_for(keys)
        if self._folded is None or self._folded[0] is not policy or self._folded[1].spread.dtype != dtype:
            form = policy.linear_form(padded.device, dtype)
            whole = padded.to(dtype)
            self._folded = (policy, form, whole @ form.combinations, form.spread @ whole.transpose(-1, -2))
        _, form, combinations, spread = self._folded
        return form, combinations[..., :keys, :], spread[..., :keys]

    @property
    def per_head(self) -> bool:
        """Whether every head has segments of its own."""
        return self.ids.dim() == 3

    def with_fixed_length(self, keys: int, policy: SegmentPolicy | None, dtype: torch.dtype) -> "Segments":
        """The same segments described for exactly `keys` = K keys, with all that is made on first use made."""
        ids = self.ids[..., :keys]
        fixed = Segments(torch.nn.functional.pad(ids, (0, keys - ids.shape[-1]), value=TEXT))
        fixed.one_hot_for(keys)
        if isinstance(policy, LinearPolicy):
            fixed.folded(policy, keys, dtype)
        return fixed

    def of_keys(self, first_key: int, keys: int) -> "Segments":
        """The segments of `keys` = K keys from absolute position `first_key` on; see `AttentionEdit.of_keys`."""
        part = _of_keys(self.ids, first_key, keys)
        return self if part is self.ids else Segments(part)


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasFactors:
    """A bias that is the same for every row: `head_gate * over_keys`.

    Attributes:
        over_keys: [B or 1, P] float32.
        head_gate: [B or 1, H] float32, or None for 1.
    """

    over_keys: Tensor
    head_gate: Tensor | None = None

    @property
    def bias(self) -> Tensor:
        """[B or 1, H or 1, 1, P], as `AttentionEdit.bias` wants it."""
        over_keys = self.over_keys[:, None, None]
        return over_keys if self.head_gate is None else self.head_gate[:, :, None, None] * over_keys


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionEdit:
    """One edit of one attention call. Every field is optional; the empty edit is the identity.

    Attributes:
        bias: [B or 1, H or 1, R or 1, P] float32, added to the scores.
        gain: [B or 1, H or 1, R or 1, P] float32, factor of |score| that is added to the score.
        slope: [B or 1, H or 1, R or 1, P] float32, factor of the score, with its sign, that is added to the score.
        segments: the segment of each key; needed by `policy`.
        policy: turns the four segment masses of a row and head into four segment weights.
        policy_rows: [B or 1, R] bool, the rows whose weights the policy may change; None means all rows.
        head_scale: [B or 1, H] float32, factor of a head's output; [B or 1, H, R] where each row has its own.
        self_mix: [B or 1, H] float32 in [0, 1], share of the output that is replaced by the row's own value.
        bias_factors: the factors of `bias`, when it has them: it can then run inside any stock attention.
    """

    bias: Tensor | None = None
    gain: Tensor | None = None
    slope: Tensor | None = None
    segments: Segments | None = None
    policy: SegmentPolicy | None = None
    policy_rows: Tensor | None = None
    head_scale: Tensor | None = None
    self_mix: Tensor | None = None
    bias_factors: BiasFactors | None = None

    @classmethod
    def constant_bias(cls, factors: BiasFactors) -> "AttentionEdit":
        """The edit that adds the same bias to every row."""
        return cls(bias=factors.bias, bias_factors=factors)

    def __post_init__(self) -> None:
        for name in ("bias", "gain", "slope"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.dim() != 4:
                raise ValueError(f"{name} must be [B or 1, H or 1, R or 1, P], given {list(tensor.shape)}")
        if self.head_scale is not None and self.head_scale.dim() not in (2, 3):
            raise ValueError(f"head_scale must be [B or 1, H] or [B or 1, H, R], given {list(self.head_scale.shape)}")
        if self.self_mix is not None and self.self_mix.dim() != 2:
            raise ValueError(f"self_mix must be [B or 1, H], given {list(self.self_mix.shape)}")
        if self.policy is not None and self.segments is None:
            raise ValueError("a segment policy needs the segments it redistributes between")

    @property
    def changes_weights(self) -> bool:
        """Whether the softmax itself has to be recomputed (otherwise only outputs are scaled or mixed)."""
        scores = self.bias is not None or self.gain is not None or self.slope is not None
        return scores or self.policy is not None

    @property
    def head_factors(self) -> Tensor | None:
        """[B or 1, H, R or 1, 1], what the outputs [B, H, R, Dv] of the heads are multiplied by."""
        if self.head_scale is None:
            return None
        return (self.head_scale if self.head_scale.dim() == 3 else self.head_scale[..., None])[..., None]

    @property
    def is_constant_bias(self) -> bool:
        """Whether the softmax changes by a bias with factors and by nothing else."""
        others = (self.gain, self.slope, self.policy, self.self_mix)
        return self.bias_factors is not None and all(item is None for item in others)

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.changes_weights and self.head_scale is None and self.self_mix is None

    def of_keys(self, first_key: int, keys: int) -> "AttentionEdit":
        """The edit of `keys` = K keys from absolute position `first_key` on, of an edit that describes the prompt's.

        A sliding layer's cache has dropped the keys in front of these, and of a prompt that is read in pieces those
        behind them are still to come.
        """
        scores = self.bias, self.gain, self.slope
        bias, gain, slope = (None if part is None else _described_or_none(part, first_key, keys) for part in scores)
        segments = None if self.segments is None else self.segments.of_keys(first_key, keys)
        if all(part is given for part, given in zip((bias, gain, slope, segments), (*scores, self.segments))):
            return self
        factors = self.bias_factors
        if factors is not None and bias is not None:
            over_keys = _of_keys(factors.over_keys, first_key, keys)
            factors = BiasFactors(over_keys=over_keys, head_gate=factors.head_gate)
        return AttentionEdit(
            bias=bias,
            gain=gain,
            slope=slope,
            segments=segments,
            policy=self.policy,
            policy_rows=self.policy_rows,
            head_scale=self.head_scale,
            self_mix=self.self_mix,
            bias_factors=None if bias is None else factors,
        )

    def with_fixed_shapes(self, keys: int, dtype: torch.dtype) -> "AttentionEdit":
        """The same edit for a cache of `keys` = K keys: no tensor depends on the prompt's length, none is made later.

        Args:
            keys: length of the cache.
            dtype: of the attention weights, at least float32.
        """
        segments = self.segments
        return AttentionEdit(
            bias=_fixed_length(self.bias, keys),
            gain=_fixed_length(self.gain, keys),
            slope=_fixed_length(self.slope, keys),
            segments=None if segments is None else segments.with_fixed_length(keys, self.policy, dtype),
            policy=self.policy,
            policy_rows=self.policy_rows,
            head_scale=self.head_scale,
            self_mix=self.self_mix,
        )

    def merge(self, later: "AttentionEdit") -> "AttentionEdit":
        """Both edits in one: score edits add, head scales multiply; only one weight policy is possible.

        Raises:
            ValueError: both edits carry a weight policy, or both mix the row's own value in.
        """
        if self.policy is not None and later.policy is not None:
            raise ValueError("two methods redistribute attention weights in the same layer; use one of them")
        if self.self_mix is not None and later.self_mix is not None:
            raise ValueError("two methods mix the row's own value in the same layer; use one of them")
        weight_edit = self if self.policy is not None else later
        return AttentionEdit(
            bias=_add_padded(self.bias, later.bias),
            gain=_add_padded(self.gain, later.gain),
            slope=_add_padded(self.slope, later.slope),
            segments=weight_edit.segments,
            policy=weight_edit.policy,
            policy_rows=weight_edit.policy_rows,
            head_scale=_product(self.head_scale, later.head_scale),
            self_mix=self.self_mix if self.self_mix is not None else later.self_mix,
            bias_factors=_only(self, later),
        )


def _of_keys(described: Tensor, first_key: int, keys: int) -> Tensor:
    """What [..., P] says of `keys` keys from `first_key` on; the tensor itself where that is all."""
    first_key = max(0, first_key)
    if not first_key and described.shape[-1] <= keys:
        return described
    return described[..., first_key : first_key + keys]


def _described_or_none(described: Tensor, first_key: int, keys: int) -> Tensor | None:
    """The same; None where it says nothing, as keys that are not described are not changed."""
    part = _of_keys(described, first_key, keys)
    return part if part.shape[-1] else None


def _fixed_length(described: Tensor | None, keys: int) -> Tensor | None:
    """[..., P] as [..., K]; keys that were not described get zero."""
    if described is None:
        return None
    described = described[..., :keys]
    return torch.nn.functional.pad(described, (0, keys - described.shape[-1]))


def _add_padded(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    longest = max(first.shape[-1], second.shape[-1])
    pad = torch.nn.functional.pad
    return pad(first, (0, longest - first.shape[-1])) + pad(second, (0, longest - second.shape[-1]))


def _only(first: AttentionEdit, second: AttentionEdit) -> BiasFactors | None:
    """The factors of the merged bias: those of the only edit that has one."""
    if first.bias is None or second.bias is None:
        return (second if first.bias is None else first).bias_factors
    return None


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    if first.dim() != second.dim():
        # One of them has a factor for each row, the other one for all rows.
        first, second = (scale if scale.dim() == 3 else scale[..., None] for scale in (first, second))
    return first * second
