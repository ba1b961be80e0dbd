"""ZeroTuning by hand, against whole eager maps, and its choice of strength."""

from functools import partial

import pytest
import torch
from eager_oracle import eager_attention

from vlm_guard import wrap
from vlm_guard.families.head_list import select_heads
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, edited_attention
from vlm_guard.methods.zerotuning.output_entropy import calibrate_zerotuning, mean_output_entropy
from zoo import UNEQUAL_PROMPTS

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_scaling_the_first_token_by_hand():
    # Weights .5, .25, .25 and g = .4: D = 1 + (.4 - 1) .5 = .7, so .2/.7, .25/.7, .25/.7.
    scores = torch.tensor([2.0, 1.0, 1.0]).log()
    problem = AttentionProblem(
        query=torch.ones(1, 1, 1, 1, dtype=torch.float64),
        key=scores.double().view(1, 1, 3, 1),
        value=torch.ones(1, 1, 3, 1, dtype=torch.float64),
        scaling=1.0,
        edit=AttentionEdit(bias=torch.tensor([[[[0.4]]]]).log().double()),
        return_weights=True,
    )
    weights = edited_attention(problem, "reference").weights.flatten()
    assert torch.allclose(weights, torch.tensor([0.2, 0.25, 0.25], dtype=torch.float64) / 0.7, atol=1e-7)


@pytest.mark.parametrize("heads", ["", "0:1,2:0-1"])
def test_it_equals_scaling_and_renormalising_whole_maps(zoo_model, heads):
    """All rows, prompt and answer, in a padded batch: a'_0 = g a_0 / D, a'_j = a_j / D."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    first = inputs["attention_mask"].argmax(-1)
    chosen = select_heads(heads, 3, zoo.model.config.text_config.num_attention_heads)

    def scale(layer, weights):
        if chosen is not None and layer not in chosen:
            return weights
        mask = torch.ones(weights.shape[1], dtype=torch.bool) if chosen is None else chosen[layer]
        factor = torch.ones_like(weights)
        for row in range(2):
            factor[row, mask, :, first[row]] = 0.3
        scaled = weights * factor
        return scaled / scaled.sum(-1, keepdim=True).clamp_min(1e-30)

    with eager_attention(zoo.model, weights=scale):
        expected = logits(zoo.model, inputs)
    with wrap(zoo.model, None, "zerotuning", factor=0.3, heads=heads):
        found = logits(zoo.model, inputs)
    real = inputs["attention_mask"].bool()
    assert not torch.allclose(expected[real], logits(zoo.model, inputs)[real], atol=1e-3)
    assert torch.allclose(found[real], expected[real], atol=2e-5)


def test_it_scales_the_first_token_only_and_keeps_the_others_ratios(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    with wrap(zoo.model, None, "none") as guard, guard.trace("0") as plain:
        guard.generate(**inputs, max_new_tokens=1)
    with wrap(zoo.model, None, "zerotuning", factor=0.25, layers="0") as guard, guard.trace("0") as tuned:
        guard.generate(**inputs, max_new_tokens=1)
    before, after = plain.weights[0][0].double(), tuned.weights[0][0].double()
    ratio = after / before
    assert torch.allclose(ratio[..., 1:], ratio[..., 1:2].expand_as(ratio[..., 1:]), rtol=1e-4)
    assert torch.allclose(ratio[..., 0], 0.25 * ratio[..., 1], rtol=1e-4)
    assert torch.allclose(after.sum(-1), torch.ones_like(after.sum(-1)))


def test_it_refuses_without_a_factor(zoo_model):
    with pytest.raises(ValueError, match="calibrate"):
        wrap(zoo_model("llava").model, None, "zerotuning")


@pytest.mark.parametrize("spec", ["3", "0:9", "9:0", "0:3-1", "a:b"])
def test_unreadable_heads_are_refused(zoo_model, spec):
    with pytest.raises(ValueError, match="heads"):
        wrap(zoo_model("llava").model, None, "zerotuning", factor=0.5, heads=spec)


def test_the_unsupervised_factor_is_the_one_of_smallest_entropy(zoo_model):
    zoo = zoo_model("llava")
    prompts = [zoo.make_inputs([prompt]) for prompt in PROMPTS]
    by_factor = {}
    for factor in (0.2, 1.0, 5.0):
        with wrap(zoo.model, None, "zerotuning", factor=factor):
            rows = torch.cat([logits(zoo.model, prompt)[:, -1] for prompt in prompts]).double()
        probability = rows.softmax(-1)
        by_factor[factor] = float(-(probability * probability.log()).sum(-1).mean())
    guarded = partial(wrap, zoo.model, None, "zerotuning")
    facts = calibrate_zerotuning(zoo.model, prompts, guarded, factors=(0.2, 1.0, 5.0))
    assert facts["zerotuning_factor"].value == min(by_factor, key=by_factor.get)
    assert facts["zerotuning_factor"].source == "calibrated"
    with pytest.raises(ValueError, match="prompt"):
        mean_output_entropy(zoo.model, [])


def test_entropy_by_hand():
    # Probabilities 1/2, 1/4, 1/4 have entropy 1.5 ln 2.
    class Fixed(torch.nn.Module):
        def forward(self, **inputs):
            from types import SimpleNamespace

            return SimpleNamespace(logits=torch.tensor([[[9.0, 0.0, 0.0], [0.5, 0.25, 0.25]]]).log())

    assert mean_output_entropy(Fixed(), [{}]) == pytest.approx(1.5 * torch.log(torch.tensor(2.0)).item())


def test_the_profile_gives_the_factor(zoo_model):
    zoo = zoo_model("llava")
    fact = Fact(value=0.5, source="calibrated")
    profile = Profile(name="tiny", match={}, facts={"zerotuning_factor": fact})
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "zerotuning", profile=profile):
        from_profile = logits(zoo.model, inputs)
    with wrap(zoo.model, None, "zerotuning", factor=0.5):
        assert torch.equal(logits(zoo.model, inputs), from_profile)


@pytest.mark.parametrize(("family", "recomputed"), [("llava", False), ("llava_gemma2", True)])
def test_no_row_of_the_prompt_is_recomputed_but_under_a_soft_cap(zoo_model, monkeypatch, family, recomputed):
    """The bias rides along in the model's own attention; both ways give the same logits."""
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPTS)
    calls = []

    def counted(problem, impl=None):
        calls.append(problem.query.shape)
        return edited_attention(problem, impl)

    monkeypatch.setattr("vlm_guard.runtime.attention.edited_attention", counted)
    with wrap(zoo.model, None, "zerotuning", factor=0.3):
        riding = logits(zoo.model, inputs)
        assert bool(calls) == recomputed
        monkeypatch.setattr("vlm_guard.runtime.attention._constant_bias", lambda context: None)
        rows = logits(zoo.model, inputs)
    real = inputs["attention_mask"].bool()
    assert torch.allclose(riding[real], rows[real], atol=2e-5)
