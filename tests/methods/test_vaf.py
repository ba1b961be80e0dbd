"""VAF: factors on the scores of visual tokens and of the text in front, by size and with the sign."""

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.families.layers import select_layers
from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.methods.vaf import VAF
from zoo import UNEQUAL_PROMPTS, Prompt

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=5, images=0, text_after=12, content=2)]
# One text token in front, two visual ones, one text token behind.
SCORES = (2.0, 1.0, -1.0, 0.0)
FACTORS = (0.95, 1.15, 1.15, 1.0)


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def weights_under(edit):
    query, key = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 4, 2)
    key[0, 0, :, 0] = torch.tensor(SCORES)
    problem = AttentionProblem(query=query, key=key, value=key, edit=edit, scaling=1.0, return_weights=True)
    return edited_attention(problem, "torch").weights.flatten().tolist()


def test_the_example_by_hand():
    """With its sign a factor takes attention from a visual token of negative score; by size it gives some to both."""
    factor = torch.tensor(FACTORS).view(1, 1, 1, 4) - 1
    plain = weights_under(AttentionEdit())
    signed = weights_under(AttentionEdit(slope=factor))
    assert plain[1:3] == pytest.approx([0.2369, 0.0321], abs=1e-4)
    assert signed[1:3] == pytest.approx([0.2830, 0.0284], abs=1e-4)
    expected = torch.tensor([2 - 0.05 * 2, 1.15, -1 + 0.15, 0.0]).softmax(-1)
    by_size = weights_under(AttentionEdit(gain=factor))
    assert by_size == pytest.approx(expected.tolist(), rel=1e-5)
    assert by_size[1] > plain[1] and by_size[2] > plain[2]


@pytest.mark.parametrize("form", ["magnitude", "signed"])
def test_it_equals_factors_in_an_eager_model(zoo_model, form):
    """Text rows behind the first picture, each row of the batch with its own padding and pictures."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    visual = inputs["input_ids"] == zoo.image_token_id
    front = (visual.cumsum(-1) == 0) & visual.any(-1, keepdim=True)
    edited = (visual.cumsum(-1) > 0) & ~visual

    def scale(layer, scores):
        size = scores if form == "signed" else scores.abs()
        changed = scores + size * (0.15 * visual - 0.05 * front.double())[:, None, None]
        return torch.where(edited[:, None, :, None], changed, scores)

    with eager_attention(zoo.model, scores=scale):
        expected = logits(zoo.model, inputs)
    with wrap(zoo.model, None, VAF(layers="all", form=form)):
        found = logits(zoo.model, inputs)
    plain = logits(zoo.model, inputs)
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], expected[real], atol=3e-5)
    assert not torch.allclose(plain[edited], expected[edited], atol=1e-3)
    before = (edited.cumsum(-1) == 0) & real
    assert torch.equal(found[before], plain[before]), "rows of the picture and in front are untouched"


def test_what_is_published_has_the_sign():
    assert VAF(variant="published").form == "signed" and VAF().form == "magnitude"
    assert select_layers(VAF().layers, 32) == tuple(range(9, 15))


@pytest.mark.parametrize("bad", [{"enhance": 0.9}, {"suppress": 1.1}])
def test_values_that_turn_the_method_around_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        VAF(**bad)
