"""Two prompts answered side by side, on every architecture, against each answered alone."""

import method_cases
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.contrast.answer_attention import paired_attention
from vlm_guard.contrast.answer_pair import AnswerPair
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.method.branch_prompt import INSERTED, GivenPrompt
from vlm_guard.method.model_inputs import TOKEN_TYPES, image_inputs
from vlm_guard.methods.none import PlainModel
from zoo import UNEQUAL_PROMPTS, assert_pristine

torch.set_num_threads(1)

PROMPTS = list(UNEQUAL_PROMPTS)
STEPS = 4


@pytest.fixture(params=method_cases.FAMILIES)
def zoo(request, zoo_model):
    return zoo_model(request.param)


def two_requests(zoo, inputs):
    """The prompts, and two others made of each: one longer, one with its last but one token exchanged."""
    mask = inputs.get("attention_mask")
    prompt = GivenPrompt(
        input_ids=inputs["input_ids"],
        attention_mask=torch.ones_like(inputs["input_ids"]) if mask is None else mask,
        visual_token_ids=describe_architecture(zoo.model).visual_token_ids,
        pad_id=0,
    )

    def longer(ids, places):
        return [*ids[:-1], 151, 152, 153, ids[-1]], [*places[:-1], *[INSERTED] * 3, places[-1]]

    def exchanged(ids, places):
        return [*ids[:-2], 154, ids[-1]], [*places[:-2], INSERTED, places[-1]]

    return prompt, (prompt.edited(longer), prompt.edited(exchanged))


def answered_alone(zoo, prompt, asked, inputs, layers):
    """[T, layers, P] head mean of the attention of one row's answer, generated alone."""
    given = image_inputs(inputs) | {"input_ids": asked.input_ids, "attention_mask": asked.attention_mask}
    given |= {name: asked.follow(inputs[name]) for name in TOKEN_TYPES if name in inputs}
    with wrap(zoo.model, None, "none") as guard, guard.trace(",".join(map(str, layers))) as trace:
        guard.generate(**given, max_new_tokens=STEPS, do_sample=False)
    found = torch.zeros(trace.steps, len(layers), prompt.input_ids.shape[1])
    for place, source in enumerate(asked.source[0].tolist()):
        if source != INSERTED and asked.attention_mask[0, place]:
            for step in range(trace.steps):
                for index, layer in enumerate(layers):
                    found[step, index, source] = trace.weights[layer][step][0, :, place].mean()
    return found


@pytest.mark.filterwarnings("ignore")
def test_padded_rows_of_both_equal_each_answered_alone(zoo):
    prompts = zoo.adapt(PROMPTS)
    inputs = zoo.make_inputs(prompts)
    layers = tuple(entry.index for entry in describe_architecture(zoo.model).layers)[-2:]
    with wrap(zoo.model, None, "none") as guard:
        prompt, asked = two_requests(zoo, inputs)
        pair = paired_attention(guard, PlainModel(), prompt, asked, inputs, layers, STEPS)
    if zoo.family.batch_invariant:
        for row, given in enumerate(prompts):
            own = zoo.make_inputs([given])
            own_prompt, own_asked = two_requests(zoo, own)
            for found, request in zip(pair, own_asked):
                expected = answered_alone(zoo, own_prompt, request, own, layers)
                length = expected.shape[-1]
                assert found[row].shape[0] == expected.shape[0]
                assert torch.allclose(found[row][..., -length:], expected, atol=2e-5), f"row {row}"
                assert not found[row][..., :-length].any()
    assert_pristine(zoo.model)


def test_the_second_prompt_is_read_from_where_it_differs_and_both_answers_share_their_steps(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([PROMPTS[0]])
    shapes = []
    hook = zoo.model.model.language_model.layers[0].register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape[:2]))
    )
    try:
        with wrap(zoo.model, None, "none") as guard:
            prompt, asked = two_requests(zoo, inputs)
            paired_attention(guard, PlainModel(), prompt, asked, inputs, (1, 2), STEPS)
    finally:
        hook.remove()
    length = inputs["input_ids"].shape[1]
    assert shapes == [(1, length + 3), (1, 2)] + [(2, 1)] * (STEPS - 1)


def test_one_step_ends_behind_the_last_layer_for_both(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    reached = []
    hook = zoo.model.model.language_model.layers[2].register_forward_pre_hook(lambda *_: reached.append(1))
    try:
        with wrap(zoo.model, None, "none") as guard:
            prompt, asked = two_requests(zoo, inputs)
            one = paired_attention(guard, PlainModel(), prompt, asked, inputs, (0, 1), 1)
            assert not reached
            several = paired_attention(guard, PlainModel(), prompt, asked, inputs, (0, 1), 2)
    finally:
        hook.remove()
    for short, long in zip(one, several):
        for row in range(2):
            assert short[row].shape[0] == 1 and torch.equal(short[row][0], long[row][0])
    assert_pristine(zoo.model)


def test_each_answer_is_its_own_greedy_one_under_the_models_logits_processors(zoo_model, monkeypatch):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([PROMPTS[0]])
    _, asked = two_requests(zoo, inputs)
    monkeypatch.setattr(zoo.model.generation_config, "no_repeat_ngram_size", 1)
    images = image_inputs(inputs)
    alone = []
    for request in asked:
        ids = request.input_ids
        answer = zoo.model.generate(input_ids=ids, **images, max_new_tokens=STEPS, do_sample=False)
        alone.append(answer[:, ids.shape[1] :])
    with wrap(zoo.model, None, "none") as guard:
        pair = AnswerPair(guard, PlainModel(), asked[1], inputs)
        first = guard.generate(
            input_ids=asked[0].input_ids, **images, max_new_tokens=STEPS, do_sample=False, custom_generate=pair
        )
    assert torch.equal(first[:, asked[0].length :], alone[0]) and torch.equal(pair.second_answer, alone[1])
    assert not torch.equal(*alone)
