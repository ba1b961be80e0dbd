"""Edits that were made one by one act the same when they are stacked."""

import pytest
import torch

from vlm_guard.kernels.attention_edit import AttentionEdit, Segments
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.kernels.policies import MoveSinksToContent, MoveSinksToRest
from vlm_guard.kernels.stacked_edits import stack_edits

HEADS, GROUPS, DIM, KEYS = 4, 2, 8, 11


def edits_of(kind):
    torch.manual_seed(3)
    lengths = (5, 7, 11)
    if kind == "gain":
        return [AttentionEdit(gain=torch.rand(1, 1, 1, length)) for length in lengths]
    if kind == "slope":
        return [AttentionEdit(slope=torch.rand(1, HEADS, 1, length)) for length in lengths]
    if kind == "bias per head":
        return [AttentionEdit(bias=torch.randn(1, HEADS, 1, length)) for length in lengths]
    if kind == "gain and bias":
        return [
            AttentionEdit(gain=torch.rand(1, 1, 1, 5), bias=torch.randn(1, HEADS, 1, 9)),
            AttentionEdit(gain=torch.rand(1, HEADS, 1, 7)),
            AttentionEdit(bias=torch.randn(1, 1, 1, 3), slope=torch.rand(1, 1, 1, 6)),
        ]
    if kind == "sinks of each head":
        policy = MoveSinksToRest(move_fraction=0.7)
        ids = [torch.randint(0, 2, (1, HEADS, length), dtype=torch.uint8) for length in lengths]
        return [AttentionEdit(segments=Segments(part), policy=policy) for part in ids]
    if kind == "sinks of all heads":
        policy = MoveSinksToContent(move_fraction=0.5, min_content_share=0.1, min_visual_mass=0.05)
        ids = [torch.randint(0, 4, (1, length), dtype=torch.uint8) for length in lengths]
        return [AttentionEdit(segments=Segments(part), policy=policy) for part in ids]
    if kind == "head scale":
        return [AttentionEdit(head_scale=torch.rand(1, HEADS)) for _ in lengths]
    if kind == "own value":
        return [AttentionEdit(self_mix=torch.rand(1, HEADS)) for _ in lengths]
    raise ValueError(kind)


KINDS = [
    "gain",
    "slope",
    "bias per head",
    "gain and bias",
    "sinks of each head",
    "sinks of all heads",
    "head scale",
    "own value",
]


def outputs_of(edits, stacked):
    torch.manual_seed(0)
    count = len(edits)
    query = torch.randn(count, HEADS, 1, DIM)
    key, value = torch.randn(2, count, GROUPS, KEYS, DIM)
    own = torch.randn(count, GROUPS, 1, DIM)
    parts = [(slice(0, count), stacked)] if stacked is not None else [(slice(i, i + 1), e) for i, e in enumerate(edits)]
    found = []
    for rows, edit in parts:
        problem = AttentionProblem(
            query=query[rows], key=key[rows], value=value[rows], own_value=own[rows], edit=edit, scaling=0.4
        )
        found.append(edited_attention(problem, "torch").output)
    return torch.cat(found)


@pytest.mark.parametrize("missing", [False, True], ids=["all", "one without"])
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_equals_one_by_one(kind, missing):
    edits = edits_of(kind)
    given = [edits[0], None, edits[2]] if missing else edits
    alone = [AttentionEdit() if edit is None else edit for edit in given]
    torch.testing.assert_close(outputs_of(alone, stack_edits(given, HEADS)), outputs_of(alone, None))
    assert not torch.allclose(outputs_of(alone, None), outputs_of([AttentionEdit()] * 3, None)), "the edits do nothing"


def test_nothing_stays_nothing():
    assert stack_edits([None, AttentionEdit()], HEADS) is None


def test_edits_of_several_rows_are_refused():
    with pytest.raises(ValueError, match="one batch row each"):
        stack_edits([AttentionEdit(gain=torch.rand(2, 1, 1, 4))], HEADS)
