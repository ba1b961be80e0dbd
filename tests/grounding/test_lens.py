"""The lens against the model's own logits and against all hidden states at once, on every family that can have it."""

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.contrast.output_embeddings import after_output_embeddings, final_norm
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.grounding.lens import LENS_FACT, PromptLens, VisualStates, lens_layers, spellings
from vlm_guard.grounding.readout import ModelReadout
from vlm_guard.method.visual_tokens import visual_mask
from zoo import FAMILIES, UNEQUAL_PROMPTS, Prompt, assert_pristine, families

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
GUARDED = {name for name in families() if FAMILIES[name].dispatches}


def record(zoo, inputs, layers=None, **settings):
    """The states that one `generate` call keeps."""
    architecture = describe_architecture(zoo.model)
    states = VisualStates.of(architecture, layers)
    with states.recording(architecture, inputs["input_ids"]), torch.no_grad():
        zoo.model.generate(**inputs, **({"max_new_tokens": 2, "do_sample": False} | settings))
    return states


def lens_of(zoo, states, rows, watched=()):
    with wrap(zoo.model, None, "none") as guard:
        return PromptLens(states, ModelReadout.of(guard), rows, watched)


@pytest.mark.parametrize("family", sorted(GUARDED - {"mllama"}))
def test_behind_the_last_layer_it_is_what_the_model_says(family, zoo_model):
    """Read behind the last layer, the lens is the largest of the model's own log-probabilities at its visual tokens."""
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    architecture = describe_architecture(zoo.model)
    last = lens_layers(architecture)[-1]
    if last < architecture.depth:
        pytest.skip(f"the last layers of {family} compute only the rows whose logits are wanted")
    states = record(zoo, inputs, (last,))
    with torch.no_grad():
        logits = zoo.model(**inputs).logits.float()
    visual = visual_mask(inputs["input_ids"], architecture.visual_token_ids)
    if logits.shape[1] != visual.shape[1]:
        pytest.skip(f"{family} gives logits for other tokens than those of its prompt")
    lens = lens_of(zoo, states, len(visual))
    # Without `generate`, some families count the positions of a padded row otherwise.
    whole = [row for row, real in enumerate(inputs["attention_mask"]) if bool(real.all())]
    assert whole
    for row in whole:
        expected = logits[row][visual[row]]
        possible = expected.amax(0) > torch.finfo(torch.float32).min  # Chameleon never says a picture's tokens
        difference = lens.best[row] - expected.log_softmax(-1).amax(0)
        assert float(difference[possible].max() - difference[possible].min()) < (2e-3 if possible.all() else 1.0)
    assert_pristine(zoo.model)


def test_the_largest_over_layers_and_tokens_and_where_it_is(zoo_model):
    """Against the plain formula on all hidden states, kept at once."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    depth = describe_architecture(zoo.model).depth
    states = record(zoo, inputs, tuple(range(depth + 1)))
    captured = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: captured.append((args[0], output)))
        for layer in describe_architecture(zoo.model).decoder_layers
    ]
    with torch.no_grad():
        zoo.model(**inputs)
    for hook in hooks:
        hook.remove()
    every = [entered for entered, _ in captured] + [captured[-1][1]]
    head, norm, finish = zoo.model.get_output_embeddings(), final_norm(zoo.model), after_output_embeddings(zoo.model)
    lens = lens_of(zoo, states, 2, [{17, 18, 19}, {19, 18, 17, 3}])
    visual = inputs["input_ids"] == zoo.image_token_id
    for row in range(2):
        with torch.no_grad():
            table = torch.stack([finish(head(norm(hidden[row][visual[row]]))).log_softmax(-1) for hidden in every])
        assert torch.allclose(lens.best[row], table.amax((0, 1)), atol=1e-4)
        assert lens.log_prob(row, [[17], [18, 19]]) == pytest.approx(
            max(float(table[..., 17].max()), float((table[..., 18].max() + table[..., 19].max()) / 2)), abs=1e-4
        )
        assert torch.allclose(lens.patch_log_probs(row, [[17]]), table[..., 17].amax(0), atol=1e-4)
        both = table[..., [18, 19]].mean(-1).amax(0)
        assert torch.allclose(lens.patch_log_probs(row, [[18, 19]]), both, atol=1e-4)
        with pytest.raises(ValueError, match="nothing is kept of token 20 in row"):
            lens.patch_log_probs(row, [[20]])


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"prefill_chunk_size": 5},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
    ],
    ids=["beams", "returned sequences", "chunked prefill", "no cache", "static cache"],
)
def test_is_the_same_however_the_prompt_is_read(settings, zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    expected, given = record(zoo, inputs), record(zoo, inputs, **settings)
    assert torch.equal(expected.rows, given.rows)
    for layer, kept in expected.found.items():
        assert torch.allclose(kept, given.found[layer], atol=1e-4), layer


def test_a_padded_batch_is_each_prompt_alone(zoo_model):
    zoo = zoo_model("qwen2_5_vl")
    together = lens_of(zoo, record(zoo, zoo.make_inputs(PROMPTS)), 2)
    for row, prompt in enumerate(PROMPTS):
        alone = lens_of(zoo, record(zoo, zoo.make_inputs([prompt])), 1)
        assert torch.allclose(together.best[row], alone.best[0], atol=1e-3)


def test_a_profile_may_name_the_layers(zoo_model):
    architecture = describe_architecture(zoo_model("llava").model)
    profile = Profile(name="mine", match={}, facts={LENS_FACT: Fact(value=[1, 0], source="calibrated")})
    assert VisualStates.of(architecture, profile=profile).layers == (0, 1)
    assert VisualStates.of(architecture, (2,), profile).layers == (2,), "what is asked for comes first"
    assert VisualStates.of(architecture, profile=Profile(name="no", match={})).layers == lens_layers(architecture)
    for wrong in ([], [0, 99], ["0"], [True], 3.5):
        profile.facts[LENS_FACT] = Fact(value=wrong, source="calibrated")
        with pytest.raises(ValueError, match=f"{LENS_FACT} of profile 'mine'"):
            lens_layers(architecture, None, profile)


def test_hooks_are_gone_before_the_answer_is_decoded(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    layers, left = describe_architecture(zoo.model).decoder_layers, []

    def hooks():
        return sum(len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in layers)

    def look(ids, scores):
        left.append(hooks())
        return scores

    # transformers leaves hooks of its own where hidden states or attentions were asked for once.
    before = hooks()
    record(zoo, inputs, max_new_tokens=3, logits_processor=[look])
    assert left == [before] * 3


def test_a_row_without_a_picture_says_nothing(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(images=0, text_after=7, content=1), Prompt(content=2)])
    lens = lens_of(zoo, record(zoo, inputs), 2)
    assert bool((lens.best[0] == -torch.inf).all())
    assert bool((lens.best[1] > -torch.inf).all())


def test_layers_are_chosen_and_refused(zoo_model):
    llava, gemma4 = (describe_architecture(zoo_model(name).model) for name in ("llava", "gemma4_shared"))
    assert lens_layers(llava)[0] == 0 and lens_layers(llava)[-1] == llava.depth
    assert lens_layers(llava, [1, 0, 1]) == (0, 1)
    partial = min(entry.index for entry in gemma4.layers if entry.last_rows_only)
    assert lens_layers(gemma4)[-1] == partial, "the layers behind compute only the last rows of a prompt"
    with pytest.raises(ValueError, match="allowed are 0"):
        lens_layers(llava, [llava.depth + 1])
    with pytest.raises(ValueError, match="self-check alone"):
        lens_layers(describe_architecture(zoo_model("mllama").model))


def test_spellings_of_a_word():
    def spell(text):
        return [sum(map(ord, piece)) for piece in text.replace(" ", " _").split() if piece]

    assert spellings("dogs", "dog", spell, [7, 8])[0] == [7, 8]
    assert spellings("dog", "dog", spell) == [spell(" dog"), spell("dog")]
