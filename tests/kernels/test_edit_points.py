"""Each edit point on numbers small enough to work out by hand, and what must hold for any numbers."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlm_guard.kernels.attention_edit import AttentionEdit, Segments
from vlm_guard.kernels.edited_attention import AttentionProblem, default_backend, edited_attention, load_backend
from vlm_guard.kernels.policies import MoveSinksToContent, MoveSinksToRest
from vlm_guard.kernels.torch_backend import attention_scores

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("triton",) if INTERPRETING else ("reference", "torch")
every_backend = pytest.mark.parametrize("backend", BACKENDS)

# One row, four keys, one of each segment; weights 0.4, 0.2, 0.1, 0.3 before any edit; values 1, 10, 100, 1000.
WEIGHTS = (0.4, 0.2, 0.1, 0.3)
VALUES = (1.0, 10.0, 100.0, 1000.0)
SEGMENTS = Segments(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8))


def small_problem(edit=None, **fields):
    """Head dimension 16 with everything in the first column, so that q.k is the logarithm of the wanted weight."""
    query, key, value = (torch.zeros(1, 1, count, 16) for count in (1, 4, 4))
    query[..., 0] = 1
    key[0, 0, :, 0] = torch.tensor(WEIGHTS).log()
    value[0, 0, :, 0] = torch.tensor(VALUES)
    return AttentionProblem(
        query=query, key=key, value=value, edit=edit or AttentionEdit(), scaling=1.0, return_weights=True, **fields
    )


def run(backend, edit=None, **fields):
    result = edited_attention(small_problem(edit, **fields), backend)
    return result.output[0, 0, 0, 0].item(), result


@every_backend
def test_no_edit(backend):
    output, result = run(backend)
    assert output == pytest.approx(0.4 + 2 + 10 + 300)
    assert result.weights.flatten().tolist() == pytest.approx(WEIGHTS)
    assert result.logsumexp.item() == pytest.approx(0, abs=1e-6)
    assert result.masses is None


@every_backend
def test_bias_is_a_factor_before_normalising(backend):
    bias = torch.zeros(1, 1, 1, 4)
    bias[..., 1] = math.log(3)
    output, result = run(backend, AttentionEdit(bias=bias))
    assert output == pytest.approx((0.4 + 6 + 10 + 300) / 1.4)
    assert result.logsumexp.item() == pytest.approx(math.log(1.4), rel=1e-5)


@every_backend
def test_gain_adds_a_share_of_the_absolute_score(backend):
    gain = torch.tensor([[[[0.0, 1.0]]]])  # only two keys are described; ln 0.2 + |ln 0.2| = 0
    output, _ = run(backend, AttentionEdit(gain=gain))
    assert output == pytest.approx((0.4 + 10 + 10 + 300) / 1.8)


@every_backend
def test_bias_and_gain_both_start_from_the_original_score(backend):
    bias = torch.full((1, 1, 1, 1), math.log(2))
    gain = torch.full((1, 1, 1, 1), 0.5)  # ln 0.4 + ln 2 + |ln 0.4| / 2 = ln(2 sqrt 0.4)
    output, _ = run(backend, AttentionEdit(bias=bias, gain=gain))
    first = 2 * math.sqrt(0.4)
    assert output == pytest.approx((first + 2 + 10 + 300) / (first + 0.6), rel=1e-5)


@every_backend
def test_slope_adds_a_share_of_the_score_with_its_sign(backend):
    slope = torch.tensor([[[[0.0, 1.0]]]])  # only two keys are described; 2 ln 0.2 = ln 0.04
    output, _ = run(backend, AttentionEdit(slope=slope))
    assert output == pytest.approx((0.4 + 0.4 + 10 + 300) / 0.84)


@every_backend
def test_bias_gain_and_slope_all_start_from_the_original_score(backend):
    one = torch.ones(1, 1, 1, 1)  # ln 0.4 + ln 2 + |ln 0.4| / 2 - ln 0.4 = ln(2 / sqrt 0.4)
    output, _ = run(backend, AttentionEdit(bias=one * math.log(2), gain=one / 2, slope=-one))
    first = 2 / math.sqrt(0.4)
    assert output == pytest.approx((first + 2 + 10 + 300) / (first + 0.6), rel=1e-5)


@every_backend
def test_masses_of_the_segments(backend):
    _, result = run(backend, AttentionEdit(segments=SEGMENTS))
    assert result.masses.flatten().tolist() == pytest.approx(WEIGHTS)


@every_backend
def test_keys_beyond_the_described_ones_are_text(backend):
    short = Segments(torch.tensor([[3, 1]], dtype=torch.uint8))
    _, result = run(backend, AttentionEdit(segments=short))
    assert result.masses.flatten().tolist() == pytest.approx([0.4, 0.2, 0.0, 0.4])


@every_backend
@pytest.mark.parametrize(("share", "mass", "acts"), [(0.7, 0.3, True), (0.8, 0.3, False), (0.7, 0.5, False)])
def test_sinks_to_content(backend, share, mass, acts):
    """Visual mass 0.4, of which content is 0.75. Half of both sinks (0.15) goes to the content: 0.3 -> 0.45."""
    policy = MoveSinksToContent(move_fraction=0.5, min_content_share=share, min_visual_mass=mass)
    output, result = run(backend, AttentionEdit(segments=SEGMENTS, policy=policy))
    wanted = (0.4, 0.1, 0.05, 0.45) if acts else WEIGHTS
    assert result.weights.flatten().tolist() == pytest.approx(wanted)
    assert output == pytest.approx(sum(weight * value for weight, value in zip(wanted, VALUES)))
    assert result.masses.flatten().tolist() == pytest.approx(WEIGHTS)


@every_backend
def test_sinks_to_content_needs_a_visual_sink(backend):
    ids = Segments(torch.tensor([[0, 1, 3, 3]], dtype=torch.uint8))
    policy = MoveSinksToContent(move_fraction=0.5, min_content_share=0.1, min_visual_mass=0.1)
    _, result = run(backend, AttentionEdit(segments=ids, policy=policy))
    assert result.weights.flatten().tolist() == pytest.approx(WEIGHTS)


@every_backend
@pytest.mark.parametrize("calibrated", [True, False])
def test_sinks_to_rest(backend, calibrated):
    """Sinks hold 0.3 and give 0.15; the rest (0.4 and 0.3) grows by 0.15 / 0.7."""
    policy = MoveSinksToRest(move_fraction=0.5, heads=torch.tensor([calibrated]))
    _, result = run(backend, AttentionEdit(segments=SEGMENTS, policy=policy))
    grown = 1 + 0.15 / 0.7
    wanted = (0.4 * grown, 0.1, 0.05, 0.3 * grown) if calibrated else WEIGHTS
    assert result.weights.flatten().tolist() == pytest.approx(wanted)


@every_backend
def test_policy_leaves_other_rows_alone(backend):
    edit = AttentionEdit(
        segments=SEGMENTS, policy=MoveSinksToRest(move_fraction=0.5), policy_rows=torch.tensor([[False]])
    )
    _, result = run(backend, edit)
    assert result.weights.flatten().tolist() == pytest.approx(WEIGHTS)


@every_backend
def test_head_scale_and_own_value(backend):
    edit = AttentionEdit(head_scale=torch.tensor([[2.0]]), self_mix=torch.tensor([[0.25]]))
    own = torch.zeros(1, 1, 1, 16)
    own[..., 0] = 8
    output, _ = run(backend, edit, own_value=own)
    assert output == pytest.approx(2 * (0.75 * 312.4 + 0.25 * 8))


@every_backend
def test_a_head_scale_of_rows(backend):
    scale = torch.tensor([[[1.0, 0.5, 2.0], [1.0, 1.0, 0.0], [3.0, 1.0, 1.0], [1.0, 1.0, 0.25]]]).repeat(2, 1, 1)
    plain = edited_attention(random_problem(AttentionEdit()), backend).output
    scaled = edited_attention(random_problem(AttentionEdit(head_scale=scale)), backend).output
    torch.testing.assert_close(scaled, plain * scale.transpose(1, 2)[..., None], rtol=0, atol=1e-6)


def test_head_scales_of_rows_and_of_heads_multiply():
    rows, heads = torch.rand(2, 4, 3), torch.rand(1, 4)
    merged = AttentionEdit(head_scale=rows).merge(AttentionEdit(head_scale=heads))
    assert torch.equal(merged.head_scale, rows * heads[..., None])
    with pytest.raises(ValueError, match=r"head_scale must be \[B or 1, H\] or \[B or 1, H, R\]"):
        AttentionEdit(head_scale=torch.rand(4))


def test_scores_before_the_softmax():
    """What methods look at: the products as the model scales, caps and biases them, and -inf on masked keys."""
    kept = torch.tensor([[[[True, False, True, True]]]])
    found = attention_scores(small_problem(softcap=1.5, mask=kept)).flatten().tolist()
    capped = [1.5 * math.tanh(math.log(weight) / 1.5) for weight in WEIGHTS]
    assert found == pytest.approx([capped[0], float("-inf"), capped[2], capped[3]], rel=1e-5)
    lowest = torch.tensor([[[[0.5, torch.finfo(torch.float32).min, 0.0, float("-inf")]]]])
    found = attention_scores(small_problem(mask=lowest)).flatten().tolist()
    assert found == pytest.approx([math.log(0.4) + 0.5, float("-inf"), math.log(0.1), float("-inf")], rel=1e-5)


@every_backend
def test_sink_logits_take_weight_without_a_value(backend):
    """exp(ln 3) = 3 joins the sum of 1: every weight is a quarter, and the masses sum to a quarter."""
    output, result = run(backend, AttentionEdit(segments=SEGMENTS), sink_logits=torch.tensor([math.log(3)]))
    assert output == pytest.approx(312.4 / 4, rel=1e-5)
    assert result.masses.sum().item() == pytest.approx(0.25)


@every_backend
def test_softcap(backend):
    cap = 1.5
    _, result = run(backend, softcap=cap)
    capped = [math.exp(cap * math.tanh(math.log(weight) / cap)) for weight in WEIGHTS]
    assert result.weights.flatten().tolist() == pytest.approx([one / sum(capped) for one in capped], rel=1e-5)


@every_backend
def test_row_positions_hide_later_keys(backend):
    output, _ = run(backend, row_positions=torch.tensor([[1]]))
    assert output == pytest.approx((0.4 + 2) / 0.6, rel=1e-5)


@every_backend
def test_masks(backend):
    kept = torch.tensor([[[[True, False, True, False]]]])
    assert run(backend, mask=kept)[0] == pytest.approx((0.4 + 10) / 0.5, rel=1e-5)
    added = torch.tensor([[[[math.log(2), 0.0, 0.0, float("-inf")]]]])
    assert run(backend, mask=added)[0] == pytest.approx((0.8 + 2 + 10) / 1.1, rel=1e-5)


@every_backend
def test_a_fully_masked_row_gives_zeros(backend):
    edit = AttentionEdit(
        segments=SEGMENTS,
        policy=MoveSinksToContent(move_fraction=0.5, min_content_share=0.1, min_visual_mass=0.1),
    )
    output, result = run(backend, edit, mask=torch.zeros(1, 1, 1, 4, dtype=torch.bool))
    assert output == 0
    assert not result.weights.any() and not result.masses.any()
    assert result.logsumexp.item() == float("-inf")


def random_problem(edit, rows=3, **fields):
    random = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(2, heads, count, 24, generator=random) for heads, count in ((4, rows), (2, 21), (2, 21))
    )
    return AttentionProblem(query=query, key=key, value=value, edit=edit, scaling=0.2, **fields)  # fmt: skip


def random_segments():
    return Segments(torch.randint(0, 4, (2, 21), generator=torch.Generator().manual_seed(4)).to(torch.uint8))


@every_backend
@pytest.mark.parametrize(
    "policy",
    [
        MoveSinksToContent(move_fraction=0.7, min_content_share=0.2, min_visual_mass=0.1),
        MoveSinksToRest(move_fraction=0.3),
    ],
    ids=["content", "rest"],
)
def test_policies_keep_row_sums_and_move_something(backend, policy):
    edited = random_problem(AttentionEdit(segments=random_segments(), policy=policy), return_weights=True)
    plain = random_problem(AttentionEdit(), return_weights=True)
    weights, before = edited_attention(edited, backend).weights, edited_attention(plain, backend).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3), rtol=0, atol=1e-5)
    assert (weights - before).abs().max() > 0.01


@every_backend
def test_without_an_edit_it_is_plain_attention(backend):
    problem = random_problem(AttentionEdit(), rows=21, row_positions=torch.arange(21)[None])
    plain = torch.nn.functional.scaled_dot_product_attention(
        problem.query, problem.key, problem.value, is_causal=True, scale=0.2, enable_gqa=True
    )
    torch.testing.assert_close(edited_attention(problem, backend).output, plain.transpose(1, 2), rtol=0, atol=2e-6)


@every_backend
def test_neutral_settings_change_nothing(backend):
    edit = AttentionEdit(
        bias=torch.zeros(1, 1, 1, 21),
        gain=torch.zeros(1, 1, 1, 21),
        segments=random_segments(),
        policy=MoveSinksToContent(move_fraction=0.0, min_content_share=0.0, min_visual_mass=0.0),
        head_scale=torch.ones(1, 4),
    )
    output = edited_attention(random_problem(edit), backend).output
    plain = edited_attention(random_problem(AttentionEdit()), backend).output
    torch.testing.assert_close(output, plain, rtol=0, atol=1e-6)


def test_default_backend_and_unknown_names():
    assert default_backend(torch.device("cpu")) == "torch"
    with pytest.raises(ValueError, match="unknown attention backend 'flash'; available: reference, torch, triton"):
        load_backend("flash")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the interpreted run")
def test_all_of_this_in_the_interpreter():
    """The same examples for the fused kernels, in a process where the interpreter is on before Triton is imported.

    It needs none of the fixtures of the zoo, for which it would import transformers.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-W", "ignore", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "--noconftest", str(Path(__file__))], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
