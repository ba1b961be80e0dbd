"""HGAI: the bias that all heads share."""

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.families.layers import select_layers
from vlm_guard.methods.hgai import HGAI
from zoo import UNEQUAL_PROMPTS, Prompt

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=5, images=0, text_after=12, content=2)]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def biased(scores, visual, strength):
    """[H, K] scores of one row after the edit."""
    return scores + strength * scores.abs().mean(0, keepdim=True) * visual


def test_the_example_by_hand():
    scores = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])
    raised = biased(scores, torch.tensor([1.0, 1.0, 0.0]), 0.5)
    assert raised.tolist() == [[2.0, -1.5, 0.5], [4.0, 0.5, -1.0]]
    assert scores.softmax(-1)[0].tolist() == pytest.approx([0.604, 0.030, 0.366], abs=1e-3)
    assert raised.softmax(-1).flatten().tolist() == pytest.approx([0.798, 0.024, 0.178, 0.964, 0.029, 0.007], abs=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_it_equals_biased_scores_in_an_eager_model(zoo_model, family):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    visual = (inputs["input_ids"] == zoo.image_token_id).double()

    def raise_scores(layer, scores):
        raised = scores.clone()
        for row in range(2):
            raised[row, :, -1] = biased(scores[row, :, -1], visual[row], 0.5)
        return raised

    with eager_attention(zoo.model, scores=raise_scores):
        expected = logits(zoo.model, inputs)
    with wrap(zoo.model, None, HGAI(layers="all")):
        found = logits(zoo.model, inputs)
    plain = logits(zoo.model, inputs)
    assert torch.allclose(found[:, -1], expected[:, -1], atol=3e-5)
    assert not torch.allclose(plain[:2, -1], expected[:2, -1], atol=1e-3)
    assert torch.equal(found[:, :-1], plain[:, :-1]) and torch.equal(found[2], plain[2])


def test_the_same_bias_whatever_the_order_of_heads(zoo_model):
    """The mean of all heads is what each head gets, so a head's bias does not know which head it is."""
    zoo = zoo_model("llava")
    seen = []

    class Watching(HGAI):
        def edit_attention(self, call):
            edit = super().edit_attention(call)
            seen.append((edit.bias, call.scores().abs(), call.visual_keys()))
            return edit

    with wrap(zoo.model, None, Watching(layers="1")) as guard:
        guard.generate(**zoo.make_inputs([Prompt()]), max_new_tokens=2, do_sample=False)
    assert [bias.shape[1] for bias, _, _ in seen] == [1, 1]
    for bias, size, visual in seen:
        shuffled = size[:, torch.randperm(size.shape[1])].mean(1, keepdim=True) * 0.5
        assert torch.allclose(bias, torch.where(visual[:, None, None], shuffled, 0), atol=1e-5)


def test_default_layers_are_those_published():
    assert select_layers(HGAI().layers, 32) == tuple(range(5, 18))
