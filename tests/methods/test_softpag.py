"""SoftPAG: the two perturbations against attention written out, the choice of heads, and the sides of the contrast."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.calibration.visual_heads import heads_by_visual_share
from vlm_guard.methods.softpag import SoftPAG
from zoo import Prompt

OnPositive = type("OnPositive", (SoftPAG,), {"edited_branch": "positive", "contrasts": lambda self: False})


def weights_of_first_step(zoo, inputs, method):
    with wrap(zoo.model, None, method) as guard, guard.trace("0") as trace:
        guard.generate(**inputs, max_new_tokens=1, do_sample=False)
        visual = guard.state.visual
    return trace.weights[0][0][0], visual[0]


@pytest.mark.parametrize("degree", [0.3, 1.0])
def test_visual_perturbation_takes_the_picture_from_chosen_heads_only(zoo_model, degree):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5)])
    plain, visual = weights_of_first_step(zoo, inputs, "none")
    found, _ = weights_of_first_step(zoo, inputs, OnPositive(heads="0:1,0:3", degree=degree))
    expected = plain.clone()
    for head in (1, 3):
        expected[head, visual] *= 1 - degree
        expected[head] /= expected[head].sum()
    assert torch.allclose(found, expected, atol=1e-6)


def test_identity_perturbation_mixes_the_rows_own_value():
    from vlm_guard.kernels.attention_edit import AttentionEdit
    from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, size, 4) for size in (1, 5, 5))
    mix = torch.tensor([[0.0, 0.6]])
    problem = AttentionProblem(
        query=query, key=key, value=value, edit=AttentionEdit(self_mix=mix), scaling=0.5, own_value=value[:, :, 4:]
    )
    weights = (query @ key.transpose(-1, -2) * 0.5).softmax(-1)
    plain = weights @ value
    expected = torch.stack((plain[:, 0], 0.4 * plain[:, 1] + 0.6 * value[:, 1, 4:]), 1)
    assert torch.allclose(edited_attention(problem, "reference").output, expected.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("perturbation", ["visual", "identity"])
@pytest.mark.parametrize("scope", ["text", "answer"])
def test_cached_equals_uncached_and_the_perturbed_branch_differs(zoo_model, perturbation, scope):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(content=0), Prompt(text_before=9, images=2, content=1)])
    record = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 4, "do_sample": False}
    method = SoftPAG(perturbation=perturbation, scope=scope, degree=0.7, layers="all", plausibility=0.0)
    plain = zoo.model.generate(**inputs, **record)
    with wrap(zoo.model, None, method) as guard:
        cached = guard.generate(**inputs, **record)
        whole = guard.generate(**inputs, **record, use_cache=False)
    assert torch.equal(cached.sequences, whole.sequences)
    assert torch.allclose(torch.stack(cached.logits), torch.stack(whole.logits), atol=1e-4)
    assert float((cached.logits[0] - plain.logits[0]).abs().max()) > 1e-2


def test_heads_that_look_at_the_picture_most(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5)])
    weights, visual = weights_of_first_step(zoo, inputs, "none")
    best = int(weights[:, visual].sum(-1).argmax())
    assert heads_by_visual_share(zoo.model, inputs, 1, layers="0") == f"0:{best}"
    pairs = heads_by_visual_share(zoo.model, inputs, 5)
    assert len(pairs.split(",")) == 5
    wrap(zoo.model, None, "softpag", heads=pairs).remove()


@pytest.mark.parametrize(
    ("heads", "match"),
    [("1", "layer:head"), ("0.3,1.2", "Did you mean '0:3,1:2'"), ("0:9", "heads 0 to 3"), ("7:0", "layers are 0 to 2")],
)
def test_heads_must_exist(zoo_model, heads, match):
    with pytest.raises(ValueError, match=match):
        wrap(zoo_model("llava").model, None, "softpag", heads=heads)
