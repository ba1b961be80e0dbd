"""Which pass is this? The guard acts on the passes it was asked for, and leaves or refuses all others by name."""

import copy
import warnings

import contrast_oracle as oracle
import pytest
import torch
from method_cases import options
from pass_cases import ATTENTION, OTHER, PROMPT, STEPS, TEXT, guarded, own_loop, run
from transformers import LogitsProcessor, LogitsProcessorList

from vlm_guard import wrap
from zoo import assert_pristine

torch.set_num_threads(1)


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


@pytest.fixture
def fresh(zoo_model):
    """A model of one's own, for tests that change it."""
    zoo = zoo_model("llava")
    return copy.copy(zoo), copy.deepcopy(zoo.model)


# -- the model is changed after wrap ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ATTENTION)
@pytest.mark.parametrize("way", ["set_attn_implementation", "config", "text config"])
def test_another_attention_implementation_is_followed(llava, method, way):
    inputs, model = llava.make_inputs(PROMPT), llava.model
    plain = run(model, inputs)
    with guarded(llava, method):
        expected = run(model, inputs)
    with guarded(llava, method):
        if way == "set_attn_implementation":
            model.set_attn_implementation("eager")
        elif way == "config":
            model.config._attn_implementation = "eager"
        else:
            model.config.text_config._attn_implementation = "eager"
        found = run(model, inputs)
        assert oracle.close(found[1], expected[1], 4.0)
        assert not oracle.close(found[1][:1], plain[1][:1]) or method == "gift", "it acts"
    assert model.config.text_config._attn_implementation == "eager", "what the user has set stays"
    model.set_attn_implementation("sdpa")
    assert_pristine(model)
    assert torch.equal(run(model, inputs)[1], plain[1])


@pytest.mark.parametrize("what", ["layer", "attention", "language model"])
def test_replaced_modules_are_refused_by_name(fresh, what):
    zoo, model = fresh
    inputs = zoo.make_inputs(PROMPT)
    language = model.model.language_model
    with wrap(model, None, "var", **options("var")) as guard:
        guard.generate(**inputs, max_new_tokens=2)
        if what == "layer":
            language.layers[1] = copy.deepcopy(type(language.layers[1])(language.config, 1))
        elif what == "attention":
            language.layers[1].self_attn = type(language.layers[1].self_attn)(language.config, 1)
        else:
            model.model.language_model = type(language)(language.config)
        name = {"layer": "layers.1", "attention": "layers.1.self_attn", "language model": "language_model"}[what]
        with pytest.raises(ValueError, match=rf"{name} was replaced after wrap.*wrap the model again"):
            guard.generate(**inputs, max_new_tokens=2)


def test_a_layer_that_computes_attention_another_way_is_found_at_the_end_of_the_prompt(fresh):
    zoo, model = fresh
    inputs = zoo.make_inputs(PROMPT)
    attention = model.model.language_model.layers[1].self_attn
    with wrap(model, None, "zerotuning", factor=0.3) as guard:
        attention.forward = lambda hidden_states, *args, **kwargs: (hidden_states, None)
        with pytest.raises(RuntimeError, match=r"edits of decoder layers 1 did not run.*zerotuning"):
            guard.generate(**inputs, max_new_tokens=2)
        del attention.forward
        guard.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_a_hidden_edit_that_is_not_asked_for_is_found(fresh, part):
    zoo, model = fresh
    inputs = zoo.make_inputs(PROMPT)
    layer = model.model.language_model.layers[2]
    with wrap(model, None, "iri", **options("iri")):
        run(model, inputs)
        kept, layer.forward = layer.forward, lambda hidden_states, *args, **kwargs: hidden_states
        with pytest.raises(RuntimeError, match=r"output of decoder layer 2 did not run.*iri"):
            run(model, inputs)
        layer.forward = kept
        config = model.config.text_config
        name, arguments = {"attention": ("self_attn", (config, 2)), "mlp": ("mlp", (config,))}[part]
        setattr(layer, name, type(getattr(layer, name))(*arguments))
        with pytest.raises(ValueError, match=f"layers.2.{name} was replaced after wrap"):
            run(model, inputs)


@pytest.mark.parametrize("method", ["uncertainty", "paint"])
def test_pictures_that_do_not_pass_the_tower_are_refused(llava, method):
    inputs = llava.make_inputs(PROMPT)
    features = llava.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    embeddings = llava.model.get_input_embeddings()(inputs["input_ids"]).clone()
    visual = inputs["input_ids"] == llava.image_token_id
    embeddings[visual] = torch.cat(tuple(features)).to(embeddings)
    ready = {name: value for name, value in inputs.items() if name != "pixel_values"}
    hook = llava.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "input_ids": None, "inputs_embeds": embeddings}),
        with_kwargs=True,
    )
    try:
        with guarded(llava, method), pytest.raises((RuntimeError, ValueError), match=r"vision tower"):
            llava.model(**ready)
    finally:
        hook.remove()
    assert_pristine(llava.model)


# -- calls inside of calls -------------------------------------------------------------------------------------------


class Asks(LogitsProcessor):
    """A logits processor that asks the same model about something else at every step."""

    def __init__(self, model, inputs, how):
        self.model, self.inputs, self.how, self.seen = model, inputs, how, []

    def __call__(self, input_ids, scores):
        if self.how == "forward":
            self.seen.append(self.model(**self.inputs).logits[:, -1])
        elif self.how == "loop":
            self.seen.append(own_loop(self.model, self.inputs, self.inputs["input_ids"][:, :STEPS]))
        else:
            self.seen.append(run(self.model, self.inputs)[1])
        return scores


@pytest.mark.parametrize("how", ["forward", "loop", "generate"])
@pytest.mark.parametrize("what", [PROMPT, OTHER, TEXT], ids=["same", "other", "text"])
@pytest.mark.parametrize("method", ["var", "paint", "vhr", "pai"])
def test_nested_calls_are_their_own_and_leave_the_outer_one_alone(llava, method, what, how):
    inputs, inner = llava.make_inputs(PROMPT), llava.make_inputs(what)
    with guarded(llava, method), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = run(llava.model, inputs)
        alone = {
            "forward": lambda: llava.model(**inner).logits[:, -1],
            "loop": lambda: own_loop(llava.model, inner, inner["input_ids"][:, :STEPS]),
            "generate": lambda: run(llava.model, inner)[1],
        }[how]()
        asks = Asks(llava.model, inner, how)
        found = run(llava.model, inputs, logits_processor=LogitsProcessorList([asks]))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(seen, alone) for seen in asks.seen)
    assert_pristine(llava.model)


@pytest.mark.parametrize("method", ["vcd", "pai"])
def test_generations_inside_a_contrast_are_their_own(llava, method):
    inputs, inner = llava.make_inputs(PROMPT), llava.make_inputs(OTHER)
    with wrap(llava.model, None, method, **options(method)):
        expected, alone = run(llava.model, inputs), run(llava.model, inner)
        asks = Asks(llava.model, inner, "generate")
        found = run(llava.model, inputs, logits_processor=LogitsProcessorList([asks]))
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(seen, alone[1]) for seen in asks.seen)


def test_parts_called_by_themselves_are_left_as_they_are_and_said_so(llava):
    inputs = llava.make_inputs(PROMPT)
    language = llava.model.model.language_model
    embeddings = llava.model.get_input_embeddings()(llava.make_inputs(OTHER)["input_ids"])
    plain = language(inputs_embeds=embeddings).last_hidden_state
    with guarded(llava, "var"):
        run(llava.model, inputs)
        with pytest.warns(UserWarning, match="called by itself"):
            found = language(inputs_embeds=embeddings).last_hidden_state
    assert torch.equal(found, plain)
