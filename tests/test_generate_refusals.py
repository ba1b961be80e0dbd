"""What a guarded model refuses: with a reason, before anything is generated, and without leaving a trace."""

import copy

import method_cases
import pytest
import torch

from vlm_guard import wrap
from zoo import Prompt, assert_pristine, build

torch.set_num_threads(1)

OPTIONS = {"var": method_cases.options("var"), "m3id": {}}
PROMPT = [Prompt(text_before=3, images=1, text_after=4, content=0)]

every_kind = pytest.mark.parametrize("method", OPTIONS)


@pytest.fixture
def llava(zoo_model):
    zoo = zoo_model("llava")
    yield zoo
    assert_pristine(zoo.model)


def answer(zoo, inputs, **settings):
    return zoo.model.generate(**inputs, max_new_tokens=3, do_sample=False, **settings)


def refused(zoo, match, function):
    """`function` is refused before a forward pass, and the guarded model then answers as before."""
    inputs = zoo.make_inputs(PROMPT)
    passes = []
    hook = zoo.model.register_forward_hook(lambda *given: passes.append(given))
    try:
        expected = answer(zoo, inputs)
        passes.clear()
        with pytest.raises(ValueError, match=match):
            function(inputs)
        assert not passes
        assert torch.equal(answer(zoo, inputs), expected)
    finally:
        hook.remove()


@every_kind
def test_continuous_batching(llava, method):
    ids = llava.make_inputs(PROMPT)["input_ids"].tolist()
    entry_points = [
        lambda inputs: llava.model.generate_batch(ids, max_new_tokens=2),
        lambda inputs: llava.model.init_continuous_batching(),
        lambda inputs: llava.model.continuous_batching_context_manager().__enter__(),
        lambda inputs: answer(llava, inputs, cache_implementation="paged"),
        # A manager that was made before the model was guarded and still runs.
        lambda inputs: llava.model(input_ids=inputs["input_ids"], cache=object()),
    ]
    with wrap(llava.model, None, method, **OPTIONS[method]):
        for function in entry_points:
            refused(llava, "continuous batching", function)
    assert "init_continuous_batching" not in vars(llava.model)


@pytest.mark.parametrize("kind", ["assistant_model", "prompt_lookup_num_tokens"])
def test_drafted_tokens_beside_a_contrast(llava, kind):
    value = build("llava", seed=1).model if kind == "assistant_model" else 2
    with wrap(llava.model, None, "m3id"):
        refused(llava, "m3id", lambda inputs: answer(llava, inputs, **{kind: value}))


@every_kind
def test_attention_weights_of_the_model(llava, method):
    """They would be those before the edit (or, for a contrast, of rows that nobody asked for)."""
    record = {"output_attentions": True, "return_dict_in_generate": True}
    with wrap(llava.model, None, method, **OPTIONS[method]):
        refused(llava, r"guard\.trace", lambda inputs: answer(llava, inputs, **record))
    with wrap(llava.model, None, "var", **OPTIONS["var"]):
        refused(llava, r"guard\.trace", lambda inputs: llava.model(**inputs, output_attentions=True))


@every_kind
def test_generating_from_embeddings_alone(llava, method):
    def from_embeddings(inputs):
        embeddings = llava.model.get_input_embeddings()(inputs["input_ids"])
        llava.model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], max_new_tokens=2)

    with wrap(llava.model, None, method, **OPTIONS[method]):
        refused(llava, "input_ids", from_embeddings)


# -- training mode --------------------------------------------------------------------------------------------


@pytest.fixture
def trainee(llava):
    return copy.deepcopy(llava.model)


def test_training_mode_without_dropout_computes_the_same(llava, trainee):
    inputs = llava.make_inputs(PROMPT)
    with wrap(trainee, None, "var", **OPTIONS["var"]), torch.no_grad():
        expected = trainee(**inputs).logits
        trainee.train()
        assert torch.equal(trainee(**inputs).logits, expected)


def test_training_mode_with_dropout_or_checkpointing_is_refused(llava, trainee):
    inputs = llava.make_inputs(PROMPT)
    trainee.train()
    with wrap(trainee, None, "var", **OPTIONS["var"]):
        for layer in trainee.model.language_model.layers:
            layer.self_attn.attention_dropout = 0.1
        with pytest.raises(ValueError, match=r"dropout.*model\.eval\(\)"):
            trainee.generate(**inputs, max_new_tokens=2)
        for layer in trainee.model.language_model.layers:
            layer.self_attn.attention_dropout = 0.0
        trainee.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match=r"gradient checkpointing.*model\.eval\(\)"):
            trainee(**inputs)
        trainee.eval()
        assert trainee.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


@pytest.mark.parametrize("method", ["var", "pai", "zerotuning"])
def test_gradients_flow_through_the_edit(llava, trainee, method):
    """A step of the embeddings along their gradient changes the guarded loss by what the gradient says."""
    inputs = llava.make_inputs(PROMPT)
    weight = trainee.get_input_embeddings().weight
    options = method_cases.options(method) | ({"guidance": 1.0} if method == "pai" else {})

    def loss():
        return trainee(**inputs).logits.square().mean()

    with wrap(trainee, None, method, **options):
        loss().backward()
        size, step = weight.grad.norm(), 1e-2
        with torch.no_grad():
            direction = weight.grad / size
            weight += step * direction
            above = loss()
            weight -= 2 * step * direction
            below = loss()
    assert float((above - below) / (2 * step)) == pytest.approx(float(size), rel=0.02)
