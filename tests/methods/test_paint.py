"""PAINT by hand: token selection, the scores' gain, several images, and what it refuses."""

import numpy as np
import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.families.vision_tower import describe_vision_tower
from vlm_guard.method.visual_tokens import spread_over_visual_tokens
from vlm_guard.methods.paint import marked_tokens
from zoo import UNEQUAL_PROMPTS, Prompt

torch.set_num_threads(1)
PROMPTS = [
    *UNEQUAL_PROMPTS,
    Prompt(text_before=2, images=0, text_after=8, content=2),
]
OPTIONS = {"layers": "all"}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def class_attention(model, inputs):
    """[layers] of [N, P]: the class token's attention summed over heads, from the tower's whole eager maps."""
    tower = model.get_encoder(modality="image")
    config = tower.config
    before = config._attn_implementation_internal
    config._attn_implementation_internal = "eager"
    try:
        with torch.no_grad():
            maps = tower(pixel_values=inputs["pixel_values"], output_attentions=True).attentions
    finally:
        config._attn_implementation_internal = before
    return [item[:, :, 0, 1:].sum(1) for item in maps]


def selection(first, late, share):
    """The paper's sets for one image, with numpy and loops."""
    count = int(len(first) * share)
    local = set(np.argsort(-first)[:count].tolist())
    lower, upper = np.percentile(late, 25), np.percentile(late, 75)
    summary = {j for j, value in enumerate(late) if value > upper + 1.5 * (upper - lower)}
    return local - summary, summary


def test_selection_by_hand():
    # Late: quartiles of (1, 1, 1, 1, 1, 1, 2, 9) are 1 and 1.25, the bound is 1.625: patches 6 and 7 are outliers.
    # First: the two largest are patches 7 and 0; 7 is a summary token already.
    first = torch.tensor([[0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9]])
    late = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 9.0]])
    local, summary = marked_tokens(first, late, 0.25)
    assert local[0].nonzero().flatten().tolist() == [0]
    assert summary[0].nonzero().flatten().tolist() == [6, 7]


def test_no_outlier_and_no_local_token():
    local, summary = marked_tokens(torch.rand(2, 8), torch.ones(2, 8), 0.1)
    assert not local.any() and not summary.any(), "int(8 x 0.1) = 0 tokens, and equal values have no outlier"


@pytest.mark.parametrize("seed", range(5))
def test_selection_equals_the_papers_sets(seed):
    torch.manual_seed(seed)
    first, late = torch.rand(3, 40), torch.rand(3, 40).exp().pow(4)
    local, summary = marked_tokens(first, late, 0.25)
    for image in range(3):
        expected = selection(first[image].numpy(), late[image].numpy(), 0.25)
        assert (set(local[image].nonzero().flatten().tolist()), set(summary[image].nonzero().flatten().tolist())) == (
            expected
        )
    assert not (local & summary).any() and (local.sum(-1) <= 10).all()


def test_it_equals_gained_scores_of_the_last_row(zoo_model):
    """s + alpha |s| on local and s + beta |s| on summary tokens, last row only, each row its own images."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    maps = class_attention(zoo.model, inputs)
    sets = [selection(first.numpy(), late.numpy(), 0.25) for first, late in zip(maps[0], maps[-2])]
    assert any(summary for _, summary in sets) or any(local for local, _ in sets)
    visual = inputs["input_ids"] == zoo.image_token_id
    gain = torch.zeros(visual.shape, dtype=torch.float64)
    image = 0
    for row in range(3):
        places = visual[row].nonzero().flatten()
        for start in range(0, len(places), 16):
            local, summary = sets[image]
            gain[row, places[start + torch.tensor(sorted(local), dtype=torch.long)]] = 0.7
            gain[row, places[start + torch.tensor(sorted(summary), dtype=torch.long)]] = 0.4
            image += 1
    assert image == 3

    def raise_scores(layer, scores):
        raised = scores.clone()
        raised[:, :, -1] += gain[:, None] * scores[:, :, -1].abs()
        return raised

    with eager_attention(zoo.model, scores=raise_scores):
        expected = logits(zoo.model, inputs)
    with wrap(zoo.model, None, "paint", **OPTIONS):
        found = logits(zoo.model, inputs)
    assert torch.allclose(found[:, -1], expected[:, -1], atol=2e-5)
    plain = logits(zoo.model, inputs)
    assert not torch.allclose(plain[:2, -1], expected[:2, -1], atol=1e-4)
    assert torch.equal(found[:, :-1], plain[:, :-1]), "no other row is touched"
    assert torch.equal(found[2], plain[2]), "a row without an image is left alone"


def test_marked_tokens_gain_attention_and_no_other_key_does(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "none") as guard, guard.trace("0") as plain:
        guard.generate(**inputs, max_new_tokens=1)
    with wrap(zoo.model, None, "paint", layers="0") as guard, guard.trace("0") as raised:
        guard.generate(**inputs, max_new_tokens=1)
        marked = guard.state.memory("paint", -1).gain[0, 0, 0] > 0
    before, after = plain.weights[0][0][0], raised.weights[0][0][0]
    assert marked.any()
    assert (after[:, marked].sum(-1) > before[:, marked].sum(-1)).all()
    assert (after[:, ~marked] <= before[:, ~marked] + 1e-7).all()


def test_several_sequences_and_beams(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "paint", **OPTIONS) as guard:
        one = guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        several = guard.generate(
            **inputs, max_new_tokens=4, do_sample=False, num_beams=2, num_return_sequences=2, length_penalty=0.0
        )
    assert several.shape[0] == 2 * one.shape[0]


def test_findings_do_not_outlive_a_call(zoo_model):
    zoo = zoo_model("llava")
    first, second = zoo.make_inputs(PROMPTS[:1]), zoo.make_inputs(PROMPTS[1:2])
    with wrap(zoo.model, None, "paint", **OPTIONS) as guard:
        alone = guard.generate(**second, max_new_tokens=3, do_sample=False)
        guard.generate(**first, max_new_tokens=3, do_sample=False)
        again = guard.generate(**second, max_new_tokens=3, do_sample=False)
        assert len(guard.findings("paint").local) == 1
    assert torch.equal(alone, again)


def test_a_tower_without_class_token_is_refused_or_substituted(zoo_model):
    zoo = zoo_model("paligemma")
    with pytest.raises(ValueError, match="mean patch"):
        wrap(zoo.model, None, "paint")
    inputs = zoo.make_inputs([Prompt(text_before=2, images=1, text_after=5, content=0)])
    plain = logits(zoo.model, inputs)
    with wrap(zoo.model, None, "paint", reference="mean patch", local_gain=2.0, **OPTIONS):
        found = logits(zoo.model, inputs)
    assert torch.isfinite(found).all() and not torch.equal(found[:, -1], plain[:, -1])


@pytest.mark.parametrize("family", ["llava_next", "gemma3"])
def test_merged_or_tiled_patches_are_refused(zoo_model, family):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs([Prompt(text_before=2, images=1, text_after=5, content=0)])
    reference = "class token" if describe_vision_tower(zoo.model, "paint").has_class_token else "mean patch"
    with (
        wrap(zoo.model, None, "paint", reference=reference, **OPTIONS) as guard,
        pytest.raises(ValueError, match="one visual token for each patch"),
    ):
        guard.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_pixtral"])
def test_towers_that_pack_their_images_are_refused(zoo_model, family):
    with pytest.raises(ValueError, match=r"paint.*as one sequence"):
        wrap(zoo_model(family).model, None, "paint", reference="mean patch")


def test_models_without_a_tower_are_refused(zoo_model):
    with pytest.raises(ValueError, match="vision tower"):
        wrap(zoo_model("fuyu").model, None, "paint")


def test_extra_passes_of_a_contrast_branch_are_ignored():
    visual = torch.tensor([[False, True, True], [True, True, False]])
    given, noised = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.full((2, 2), 9.0)
    spread = spread_over_visual_tokens([given, noised], visual, "paint")
    assert spread.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 0.0]]
    with pytest.raises(ValueError, match="one visual token"):
        spread_over_visual_tokens([torch.zeros(2, 3)], visual, "paint")
