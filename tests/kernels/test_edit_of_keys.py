"""An edit of a prompt's keys as a layer sees it that holds only the last ones, or only the first so far."""

import torch

from vlm_guard.kernels.attention_edit import AttentionEdit, BiasFactors, Segments
from vlm_guard.kernels.policies import MoveSinksToRest


def test_what_is_described_is_cut_to_the_kept_keys():
    gain, ids = torch.rand(2, 1, 1, 6), torch.tensor([[0, 1, 2, 3, 3, 2]], dtype=torch.uint8)
    policy = MoveSinksToRest(move_fraction=0.5)
    edit = AttentionEdit(gain=gain, segments=Segments(ids), policy=policy, head_scale=torch.ones(1, 4))
    cut = edit.of_keys(2, 9)
    assert torch.equal(cut.gain, gain[..., 2:]) and torch.equal(cut.segments.ids, ids[:, 2:])
    assert cut.policy is policy and cut.head_scale is edit.head_scale
    assert edit.of_keys(0, 6) is edit


def test_factors_are_cut_with_their_bias():
    factors = BiasFactors(over_keys=torch.tensor([[1.0, 0.0, 2.0]]), head_gate=torch.tensor([[1.0, 0.0]]))
    cut = AttentionEdit.constant_bias(factors).of_keys(1, 2)
    assert cut.is_constant_bias and torch.equal(cut.bias_factors.bias, cut.bias)
    assert torch.equal(cut.bias[0, 0, 0], torch.tensor([0.0, 2.0]))


def test_an_edit_of_dropped_keys_only_is_empty():
    factors = BiasFactors(over_keys=torch.ones(1, 3))
    for edit in (AttentionEdit(gain=torch.ones(1, 1, 1, 3)), AttentionEdit.constant_bias(factors)):
        assert not edit.is_empty
        assert edit.of_keys(3, 2).is_empty and edit.of_keys(7, 2).is_empty


def test_keys_that_are_still_to_come_are_left_out():
    """A prompt is read in pieces: of six keys that are described, four are there."""
    slope, ids = torch.rand(1, 4, 1, 6), torch.tensor([[0, 1, 2, 3, 3, 2]], dtype=torch.uint8)
    edit = AttentionEdit(slope=slope, segments=Segments(ids), policy=MoveSinksToRest(move_fraction=0.5))
    part = edit.of_keys(0, 4)
    assert torch.equal(part.slope, slope[..., :4]) and torch.equal(part.segments.ids, ids[:, :4])
    part = edit.of_keys(1, 3)
    assert torch.equal(part.slope, slope[..., 1:4]) and torch.equal(part.segments.ids, ids[:, 1:4])
