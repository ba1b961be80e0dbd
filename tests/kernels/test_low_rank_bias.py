"""A rank-one bias through the stock attention kernel equals the reference's bias."""

import pytest
import torch

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem
from vlm_guard.kernels.low_rank_bias import low_rank_bias
from vlm_guard.kernels.reference import reference_attention


def problem_with_bias(dtype, head_dim, value_dim, bias, row_gate, head_gate, rows=5, keys=19):
    random = torch.Generator().manual_seed(head_dim)
    query = torch.randn(2, 6, rows, head_dim, generator=random).to(dtype)
    key = torch.randn(2, 2, keys, head_dim, generator=random).to(dtype)
    value = torch.randn(2, 2, keys, value_dim, generator=random).to(dtype)
    full = bias[:, None, None, :].double()
    if row_gate is not None:
        full = full * row_gate[:, None, :, None]
    if head_gate is not None:
        full = full * head_gate[:, :, None, None]
    return AttentionProblem(query=query, key=key, value=value, edit=AttentionEdit(bias=full), scaling=head_dim**-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(24, 24), (80, 80), (128, 128), (64, 96)])
@pytest.mark.parametrize("gated", [False, True])
def test_equals_the_reference(dtype, head_dim, value_dim, gated):
    random = torch.Generator().manual_seed(1)
    bias = 2 * torch.randn(2, 17, generator=random)
    row_gate = torch.rand(2, 5, generator=random) if gated else None
    head_gate = torch.rand(1, 6, generator=random) if gated else None
    problem = problem_with_bias(dtype, head_dim, value_dim, bias, row_gate, head_gate)
    wide = low_rank_bias(problem.query, problem.key, problem.value, bias, row_gate, head_gate, problem.scaling)
    assert wide[0].shape[-1] % 8 == 0 and wide[0].dtype == dtype
    # Everything in float64 from here on: what is left is what the extra columns themselves lose.
    output = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.double() for tensor in wide), scale=problem.scaling, enable_gqa=True
    )
    exact = reference_attention(
        AttentionProblem(
            query=problem.query.double(),
            key=problem.key.double(),
            value=problem.value.double(),
            edit=problem.edit,
            scaling=problem.scaling,
        )
    )
    # The largest logit change is about 6, so two float32 roundings move a weight by some 1e-6 of itself.
    torch.testing.assert_close(output[..., :value_dim].transpose(1, 2), exact.output, rtol=0, atol=4e-6)
    assert not output[..., value_dim:].any()


def test_first_token_factor():
    """c = ln g on one key is a factor g on its attention before the rows are normalised again."""
    problem = problem_with_bias(torch.float32, 24, 24, torch.zeros(1, 19), None, None)
    plain = torch.softmax(problem.query @ problem.key.repeat_interleave(3, 1).mT * problem.scaling, -1)
    plain[..., 0] *= 3
    wanted = (plain / plain.sum(-1, keepdim=True)) @ problem.value.repeat_interleave(3, 1)
    bias = torch.tensor([[3.0]]).log()
    wide = low_rank_bias(problem.query, problem.key, problem.value, bias, None, None, problem.scaling)
    output = torch.nn.functional.scaled_dot_product_attention(*wide, scale=problem.scaling, enable_gqa=True)
    torch.testing.assert_close(output[..., :24], wanted, rtol=0, atol=1e-6)


def test_wrong_shapes_say_what_is_allowed():
    problem = problem_with_bias(torch.float32, 24, 24, torch.zeros(1, 19), None, None)
    arguments = (problem.query, problem.key, problem.value)
    with pytest.raises(ValueError, match=r"\[2 or 1, at most 19\], given \[3, 4\]"):
        low_rank_bias(*arguments, torch.zeros(3, 4), None, None, 0.2)
    with pytest.raises(ValueError, match="scaling other than 0"):
        low_rank_bias(*arguments, torch.zeros(1, 4), None, None, 0.0)
