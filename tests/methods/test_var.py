"""VAR by hand: sinks, head selection, redistribution, and what the paper claims of it."""

import math

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.kernels.attention_edit import TEXT_SINK, VISUAL_CONTENT, VISUAL_SINK
from vlm_guard.kernels.policies import MoveSinksToContent
from vlm_guard.method import FindingsCall, MarkedTokens
from vlm_guard.methods.var.method import VAR, sink_activation
from zoo import Prompt

torch.set_num_threads(1)


def weights(masses, **settings):
    given = {"move_fraction": 0.4, "min_content_share": 0.5, "min_visual_mass": 0.2} | settings
    return MoveSinksToContent(**given).weights(torch.tensor(masses, dtype=torch.float64)[None, None, None])[0, 0, 0]


def test_sink_activation_by_hand():
    # x = (3, 4, 0, 0): mean square 25/4, rms 2.5, so the normalised values are 1.2, 1.6, 0, 0.
    hidden = torch.tensor([[[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0]]])
    assert torch.allclose(sink_activation(hidden, (0,)), torch.tensor([[1.2, 0.0]]), atol=1e-6)
    assert torch.allclose(sink_activation(hidden, (0, 1, 2)), torch.tensor([[1.6, 2.0]]), atol=1e-6)


def test_redistribution_by_hand():
    # Masses: text .3, text sink .2, visual sink .1, content .4. Sinks keep 60 %: .3 -> .18, so .12 moves to content:
    # factor (0.4 + 0.12) / 0.4 = 1.3.
    factors = weights([0.3, 0.2, 0.1, 0.4])
    assert torch.allclose(factors, torch.tensor([1.0, 0.6, 0.6, 1.3], dtype=torch.float64))


def test_row_sum_is_kept():
    masses = torch.rand(50, 4, dtype=torch.float64)
    masses /= masses.sum(-1, keepdim=True)
    policy = MoveSinksToContent(move_fraction=0.7, min_content_share=0.1, min_visual_mass=0.1)
    factors = policy.weights(masses[None, None])[0, 0]
    assert torch.allclose((masses * factors).sum(-1), torch.ones(50, dtype=torch.float64))
    assert (factors[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("masses", "why"),
    [
        ([0.9, 0.02, 0.04, 0.04], "too little attention on the image"),
        ([0.3, 0.2, 0.3, 0.2], "most of the visual attention is on sinks"),
        ([0.3, 0.3, 0.0, 0.4], "no visual sink: text sinks alone never trigger"),
    ],
)
def test_other_heads_are_left_alone(masses, why):
    assert torch.equal(weights(masses), torch.ones(4, dtype=torch.float64)), why


def test_the_papers_and_the_codes_convention_name_the_same_edit():
    # The released code keeps p = 0.6 of every sink; move_fraction is what leaves: 0.4.
    assert VAR(sink_dimensions="1").move_fraction == pytest.approx(1 - 0.6)
    assert torch.allclose(weights([0.3, 0.2, 0.1, 0.4], move_fraction=0.6)[1], torch.tensor(0.4, dtype=torch.float64))


def test_planted_sinks_are_found_per_row_and_layer(zoo_model):
    """Sinks planted in the embeddings of two rows at different places are found in exactly those places."""
    zoo = zoo_model("llava")
    prompts = [
        Prompt(text_before=3, images=1, text_after=5, content=0),
        Prompt(text_before=7, images=1, text_after=6, content=1),
    ]
    inputs = zoo.make_inputs(prompts)
    dimension, strength = 11, 400.0
    visual = inputs["input_ids"] == zoo.image_token_id
    planted = torch.zeros_like(visual)
    for row in range(2):
        real = inputs["attention_mask"][row].nonzero().flatten()
        image = visual[row].nonzero().flatten()
        planted[row, real[0]] = True
        planted[row, image[2 + row]] = True

    def plant(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[..., dimension] = torch.where(planted, strength, 0.0)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    layers = zoo.model.get_decoder().layers
    hooks = [layer.register_forward_pre_hook(plant, with_kwargs=True) for layer in layers]
    try:
        threshold = 0.9 * math.sqrt(zoo.config.text_config.hidden_size)
        with (
            wrap(
                zoo.model, None, "var", sink_dimensions=str(dimension), sink_threshold=threshold, layers="all"
            ) as guard,
            torch.no_grad(),
        ):
            zoo.model(**inputs)
            for layer in range(len(layers)):
                ids = guard.state.memory("var", layer).edit.segments.ids
                assert torch.equal(ids == VISUAL_SINK, planted & visual)
                assert torch.equal(ids == TEXT_SINK, planted & ~visual)
                assert torch.equal(ids == VISUAL_CONTENT, visual & ~planted)
    finally:
        for hook in hooks:
            hook.remove()


def test_generated_tokens_never_become_sinks(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, images=1, text_after=5, content=0)])
    options = {"sink_dimensions": "0,5,9", "sink_threshold": 0.0, "layers": "all"}
    with wrap(zoo.model, None, "var", **options) as guard, torch.no_grad():
        for use_cache in (True, False):
            guard.generate(**inputs, max_new_tokens=4, use_cache=use_cache)
            assert guard.state.memory("var", 1).sinks.shape[1] == inputs["input_ids"].shape[1]


def test_only_text_rows_after_the_image_change_in_the_first_layer(zoo_model):
    """With only layer 0 edited, the prompt's own and the image's positions keep their hidden states."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=4, images=1, text_after=5, content=0)])
    options = {"sink_dimensions": "0,5,9", "sink_threshold": 0.5, "min_visual_mass": 0.0, "min_content_share": 0.0}
    with torch.no_grad():
        plain = zoo.model(**inputs, output_hidden_states=True).hidden_states[1]
        with wrap(zoo.model, None, "var", layers="0", **options):
            edited = zoo.model(**inputs, output_hidden_states=True).hidden_states[1]
    visual = (inputs["input_ids"] == zoo.image_token_id)[0]
    last = int(visual.nonzero().max())
    assert torch.equal(plain[0, : last + 1], edited[0, : last + 1])
    assert not torch.equal(plain[0, last + 1 :], edited[0, last + 1 :])


def test_without_visual_sinks_a_layer_keeps_its_own_attention(zoo_model):
    """Sinks among the text alone select no head: nothing is recomputed, and the logits are the model's, bit for bit."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, images=1, text_after=5, content=0)])
    with torch.no_grad():
        plain = zoo.model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
        with wrap(zoo.model, None, "var", sink_dimensions="0", sink_threshold=1000.0, layers="all") as guard:
            guarded = guard.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
            assert guard.state.memory("var", 0).edit is None
    assert torch.equal(torch.stack(plain.logits), torch.stack(guarded.logits))


def test_a_row_without_visual_sinks_is_unchanged_beside_one_that_has_them(zoo_model):
    zoo = zoo_model("llava")
    prompts = [Prompt(text_before=3, images=1, text_after=5, content=content) for content in (0, 1)]
    inputs = zoo.make_inputs(prompts)
    visual = inputs["input_ids"] == zoo.image_token_id
    dimension = 11

    def plant(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[0, visual[0].nonzero()[2], dimension] = 400.0
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    hook = zoo.model.get_decoder().layers[0].register_forward_pre_hook(plant, with_kwargs=True)
    options = {"sink_dimensions": str(dimension), "sink_threshold": 5.0, "min_visual_mass": 0.0}
    try:
        with torch.no_grad():
            plain = zoo.model(**inputs).logits
            with wrap(zoo.model, None, "var", layers="0", min_content_share=0.0, **options):
                edited = zoo.model(**inputs).logits
    finally:
        hook.remove()
    assert torch.allclose(plain[1], edited[1], atol=1e-5)
    assert not torch.allclose(plain[0], edited[0], atol=1e-5)


def test_a_model_known_to_have_no_sinks_is_left_alone(zoo_model):
    """A profile may say that there are none; without any word on it, wrap refuses."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, images=1, text_after=4, content=0)])
    known = Profile(name="test", match={}, facts={"sink_dimensions": Fact(value=[], source="calibrated")})
    with torch.no_grad():
        plain = zoo.model(**inputs).logits
        with wrap(zoo.model, None, "var", profile=known) as guard:
            assert guard.methods[0].layers == frozenset()
            assert torch.equal(zoo.model(**inputs).logits, plain)
    with pytest.raises(ValueError, match="needs the sink dimensions"):
        wrap(zoo.model, None, "var", profile=Profile(name="test", match={}, facts={}))


def test_findings_tell_the_sinks_of_the_picture(zoo_model):
    zoo = zoo_model("llava")
    options = {"sink_dimensions": "0,5,9", "sink_threshold": 1.2, "min_visual_mass": 0.01, "layers": "all"}
    with wrap(zoo.model, None, "var", **options) as guard:
        guard.generate(**zoo.make_inputs([Prompt(content=0)]), max_new_tokens=2)
        bound = guard.methods[0]
        call = FindingsCall(state=guard.state, kept=guard.findings("var"), layers=tuple(sorted(bound.layers)))
        (found,) = bound.method.findings(call)
        sinks = [guard.state.memory("var", layer).sinks[0] for layer in call.layers]
        visual = guard.state.visual[0]
    expected = torch.stack(sinks).any(0)[visual[: sinks[0].shape[0]]]
    assert isinstance(found, MarkedTokens) and found.marked.tolist() == expected.tolist()
    counts = [int((row & visual[: len(row)]).sum()) for row in sinks if bool((row & visual[: len(row)]).any())]
    assert [int(part.split()[0]) for part in found.text.split("layer ")[1:] for part in [part.split(": ")[1]]] == counts
