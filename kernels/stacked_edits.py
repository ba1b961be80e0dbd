"""Edits of several batches as one edit: rows that are decoded together, each with what was made for its own prompt."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import TEXT, AttentionEdit, Segments


def stack_edits(edits: Sequence[AttentionEdit | None], heads: int) -> AttentionEdit | None:
    """One edit for the rows of all batches, in order.

    Args:
        edits: one for each batch, of one batch row and one query row each; None changes nothing. Those with a weight
            policy must have the same one, as edits of one method have.
        heads: H, query heads.

    Returns:
        The edit for [len(edits), H, 1, ...] rows; None where none of them changes anything.

    Raises:
        ValueError: an edit is for more than one row.
    """
    given = [None if edit is None or edit.is_empty else edit for edit in edits]
    if all(edit is None for edit in given):
        return None
    for edit in given:
        if edit is not None and _rows(edit) != 1:
            raise ValueError(f"edits are stacked by one batch row each, given one of {_rows(edit)}")
    known = [edit for edit in given if edit is not None]
    policies = [edit for edit in known if edit.policy is not None]
    return AttentionEdit(
        bias=_described([None if edit is None else edit.bias for edit in given]),
        gain=_described([None if edit is None else edit.gain for edit in given]),
        slope=_described([None if edit is None else edit.slope for edit in given]),
        segments=_segments([None if edit is None else edit.segments for edit in given]) if policies else None,
        policy=policies[0].policy if policies else None,
        policy_rows=_policy_rows(given) if policies else None,
        head_scale=_of_heads([None if edit is None else edit.head_scale for edit in given], heads, 1.0),
        self_mix=_of_heads([None if edit is None else edit.self_mix for edit in given], heads, 0.0),
    )


def _rows(edit: AttentionEdit) -> int:
    """Batch rows of an edit."""
    tensors = [getattr(edit, item.name) for item in fields(edit)]
    sizes = [item.shape[0] for item in tensors if isinstance(item, Tensor)]
    if edit.segments is not None:
        sizes.append(edit.segments.ids.shape[0])
    return max(sizes, default=1)


def _described(values: Sequence[Tensor | None]) -> Tensor | None:
    """[N, H or 1, 1, P] of [1, H or 1, 1, P] values, zero where there is none; P is that of the longest."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    longest, heads = max(value.shape[-1] for value in known), max(value.shape[1] for value in known)
    none = known[0].new_zeros(1, heads, 1, longest)
    padded = [
        none
        if value is None
        else torch.nn.functional.pad(value, (0, longest - value.shape[-1])).expand(1, heads, 1, longest)
        for value in values
    ]
    return torch.cat(padded)


def _segments(values: Sequence[Segments | None]) -> Segments:
    """Segments [N, P] or [N, H, P]; everything is text where there are none."""
    known = [value.ids for value in values if value is not None]
    longest, per_head = max(ids.shape[-1] for ids in known), any(ids.dim() == 3 for ids in known)
    heads = max((ids.shape[1] for ids in known if ids.dim() == 3), default=0)
    shape = (1, heads, longest) if per_head else (1, longest)
    text = torch.full(shape, TEXT, dtype=torch.uint8, device=known[0].device)
    rows = []
    for value in values:
        if value is None:
            rows.append(text)
            continue
        ids = value.ids[:, None] if per_head and value.ids.dim() == 2 else value.ids
        rows.append(torch.nn.functional.pad(ids, (0, longest - ids.shape[-1]), value=TEXT).expand(shape))
    return Segments(torch.cat(rows))


def _policy_rows(edits: Sequence[AttentionEdit | None]) -> Tensor | None:
    """[N, 1] bool, the batches whose weights the policy may change; None for all of them."""
    allowed = [edit is not None and edit.policy is not None for edit in edits]
    given = [None if edit is None else edit.policy_rows for edit in edits]
    if all(allowed) and all(rows is None for rows in given):
        return None
    device = next(edit.segments.ids.device for edit in edits if edit is not None and edit.segments is not None)
    rows = [torch.tensor([[able]], device=device) if own is None else own for able, own in zip(allowed, given)]
    return torch.cat(rows)


def _of_heads(values: Sequence[Tensor | None], heads: int, nothing: float) -> Tensor | None:
    """[N, H] of [1, H] values, `nothing` where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    none = known[0].new_full((1, heads), nothing)
    return torch.cat([none if value is None else value.expand(1, heads) for value in values])
