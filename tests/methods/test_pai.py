"""PAI: the raised scores of the row that predicts, and the contrast with strength guidance - 1."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.method.contrasting import contrast_logits
from vlm_guard.methods.pai import PAI
from zoo import Prompt


def test_guidance_equals_the_published_classifier_free_form():
    torch.manual_seed(0)
    with_image, text = torch.randn(2, 30), torch.randn(2, 30)
    gamma = 1.7
    conditional, unconditional = with_image.log_softmax(-1), text.log_softmax(-1)
    published = gamma * (conditional - unconditional) + unconditional
    published = published.masked_fill(
        conditional < conditional.amax(-1, keepdim=True) + torch.log(torch.tensor(0.1)), float("-inf")
    )
    ours = PAI(guidance=gamma).combine_logits(with_image, text, 3)
    assert torch.allclose(ours.softmax(-1), published.softmax(-1), atol=1e-6)
    assert torch.equal(ours, contrast_logits(with_image, text, gamma - 1, 0.1))


def record_weights(model, inputs, method):
    """[H, K] attention of the last prompt row of every layer under a guard, from an independent eager recomputation."""
    with wrap(model, None, method) as guard, guard.trace() as trace:
        guard.generate(**inputs, max_new_tokens=2, do_sample=False)
        visual = guard.state.visual
    return trace, visual


def test_only_visual_scores_of_the_answer_rows_are_raised(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5)])
    first_edited = PAI(gain=0.5, guidance=1.0, layers="1")
    plain, visual = record_weights(zoo.model, inputs, "none")
    edited, _ = record_weights(zoo.model, inputs, first_edited)
    before, after = plain.weights[1][0][0], edited.weights[1][0][0]
    seen = visual[0]
    ratio = after / before
    # exp(s + g |s|) / exp(s) = exp(g |s|) >= 1 before normalisation, the same factor 1 / norm for all other keys.
    others = ratio[:, ~seen]
    assert torch.allclose(others, others[:, :1].expand_as(others), rtol=1e-4)
    assert bool((ratio[:, seen] > others[:, :1] * 0.9999).all())
    assert torch.allclose(plain.weights[0][0], edited.weights[0][0]), "layer 0 is not edited"


def test_gain_formula_on_known_scores(zoo_model):
    from vlm_guard.kernels.attention_edit import AttentionEdit
    from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention

    query = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    key = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]]).view(1, 1, 3, 2)
    gain = torch.tensor([0.2, 0.2, 0.0]).view(1, 1, 1, 3)
    problem = AttentionProblem(
        query=query, key=key, value=key, edit=AttentionEdit(gain=gain), scaling=1.0, return_weights=True
    )
    expected = torch.tensor([2.0 + 0.4, -2.0 + 0.4, 1.0]).softmax(-1)  # positive and negative scores both grow
    assert torch.allclose(edited_attention(problem, "torch").weights.flatten(), expected)


def test_both_parts_can_be_switched_off(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt()])
    with wrap(zoo.model, None, "pai", gain=0.0) as guard:
        assert guard.contrast is not None
        contrast_only = guard.generate(**inputs, max_new_tokens=4, do_sample=False)
    with wrap(zoo.model, None, "pai", guidance=1.0) as guard:
        assert guard.contrast is None
        guard.generate(**inputs, max_new_tokens=4, do_sample=False)
    with wrap(zoo.model, None, "pai", guidance=1.1, gain=0.0, plausibility=0.0) as guard:
        assert contrast_only.shape == guard.generate(**inputs, max_new_tokens=4, do_sample=False).shape


@pytest.mark.parametrize("bad", [{"gain": 1.5}, {"guidance": 0.5}])
def test_values_that_turn_the_method_around_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        PAI(**bad)
