"""What is chosen by a threshold in half precision is chosen as float32 arithmetic on the same inputs would."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.kernels.attention_edit import AttentionEdit, Segments
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.kernels.policies import MoveSinksToContent
from vlm_guard.methods.vhr import head_scoring
from zoo import Prompt

torch.set_num_threads(1)
HALVES = [torch.bfloat16, torch.float16]


def problem(dtype, rows, **settings):
    generator = torch.Generator().manual_seed(rows)
    query, key, value = (
        torch.randn(2, heads, count, 16, generator=generator).to(torch.bfloat16).to(dtype)
        for heads, count in ((8, rows), (2, 40), (2, 40))
    )
    return AttentionProblem(query=query * 4, key=key, value=value, scaling=0.25, **settings)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("rows", [1, 5])
def test_weights_of_half_precision_inputs_are_float32_numbers(backend, rows):
    asked = {"edit": AttentionEdit(), "return_weights": True}
    half = edited_attention(problem(torch.bfloat16, rows, **asked), backend).weights
    full = edited_attention(problem(torch.float32, rows, **asked), backend).weights
    assert half.dtype == torch.float32
    assert torch.allclose(half, full, atol=1e-6), "scores rounded to bfloat16 would be 1e-2 away"


@pytest.mark.parametrize("rows", [1, 5])
def test_a_policy_selects_the_same_heads_in_half_precision(rows):
    ids = torch.randint(0, 4, (2, 40), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    policy = MoveSinksToContent(move_fraction=1.0, min_content_share=0.5, min_visual_mass=0.5)
    edit = AttentionEdit(segments=Segments(ids), policy=policy)
    chosen = [
        edited_attention(problem(dtype, rows, edit=edit, return_weights=True), "torch").weights
        for dtype in (torch.bfloat16, torch.float32)
    ]
    sinks = (ids == 1) | (ids == 2)
    moved = [weights[..., sinks[0]].sum(-1)[0] == 0 for weights in chosen]
    assert moved[1].any() and not moved[1].all()
    assert torch.equal(*moved)
    assert torch.allclose(*chosen, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_vhr_compares_unrounded_head_outputs(zoo_model, dtype, monkeypatch):
    zoo = zoo_model("llava", dtype)
    inputs = zoo.make_inputs([Prompt(content=0), Prompt(text_before=9, images=2, content=1)])
    seen = []
    read = head_scoring._at

    def look(call, output, rows, places):
        found = read(call, output, rows, places)
        seen.append((found, output[rows, places]))
        return found

    monkeypatch.setattr(head_scoring, "_at", look)
    with torch.no_grad(), wrap(zoo.model, None, "vhr", layers="all"):
        zoo.model(**inputs)
    assert len(seen) == 6
    for exact, rounded in seen:
        assert exact.dtype == torch.float32
        assert torch.allclose(exact, rounded.float(), atol=0.02)
        assert not torch.equal(exact, exact.to(dtype).float()), "the numbers have more than half precision"
