"""Decoding loops over `model(...)`, losses, likelihoods: guarded as `generate` is, or refused by name."""

import contrast_oracle as oracle
import pytest
import torch
from pass_cases import ATTENTION, PROMPT, RECORD, STEPS, guarded, own_loop, run
from PIL import Image
from torch import nn

from vlm_guard import builtin, wrap
from zoo import Prompt, assert_pristine

torch.set_num_threads(1)


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


# -- decoding loops of one's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("method", ATTENTION)
def test_own_loops_equal_generate(zoo_model, method, family):
    if method == "paint" and family != "llava":
        pytest.skip("paint needs a class token")
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPT)
    with guarded(zoo, method):
        sequences, expected = run(zoo.model, inputs)
        found = own_loop(zoo.model, inputs, sequences[:, -STEPS:])
    assert oracle.close(found, expected, 4.0)


@pytest.mark.parametrize("method", ["var", "act", "zerotuning", "vhr", "gift"])
def test_labels_tell_where_the_answer_begins(llava, method):
    """A loss over prompt and answer is that of the answer's guarded logits."""
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, method):
        sequences, logits = run(llava.model, inputs, eos_token_id=None, min_new_tokens=STEPS)
        length = inputs["input_ids"].shape[1]
        labels = sequences.clone()
        labels[:, :length] = -100
        whole = {**inputs, "input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
        out = llava.model(**whole, labels=labels)
    found = out.logits[:, length - 1 : -1].transpose(0, 1)
    assert oracle.close(found, logits, 8.0)
    expected = nn.functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1), sequences[:, length:].flatten())
    assert torch.allclose(out.loss, expected, atol=1e-4)


# -- contrasts outside of generate -----------------------------------------------------------------------------------

CONTRASTS = {
    "vcd": {},
    "m3id": {"forgetting": 0.3},
    "pai": {"layers": "all"},
    "softpag": {"layers": "all"},
    "dola": {"candidates": "1-"},
    "icd": None,
    "lqcd": None,
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", ["vcd", "m3id", "pai", "softpag", "dola"])
def test_contrasts_in_own_loops_equal_generate(zoo_model, family, method):
    zoo = zoo_model(family)
    prompts = [*PROMPT, Prompt(text_before=4, images=1, text_after=9, content=2)]
    inputs = zoo.make_inputs(PROMPT if family == "qwen2_5_vl" else prompts)
    plain = run(zoo.model, inputs)[1]
    with wrap(zoo.model, None, method, **CONTRASTS[method]):
        sequences, expected = run(zoo.model, inputs, eos_token_id=None)
        found = own_loop(zoo.model, inputs, sequences[:, -STEPS:])
    assert torch.isfinite(found).all()
    assert oracle.close(found, expected, 8.0)
    assert not oracle.close(found[1:], plain[1:])
    assert_pristine(zoo.model)


@pytest.mark.parametrize("method", ["vcd", "m3id", "pai", "softpag", "dola"])
def test_contrasts_of_labelled_answers(llava, method):
    inputs = llava.make_inputs(PROMPT)
    length = inputs["input_ids"].shape[1]
    with wrap(llava.model, None, method, **CONTRASTS[method]):
        sequences, logits = run(llava.model, inputs, eos_token_id=None)
        labels = sequences.clone()
        labels[:, :length] = -100
        whole = {**inputs, "input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
        out = llava.model(**whole, labels=labels)
    found = out.logits[:, length - 1 : -1].transpose(0, 1)
    assert oracle.close(found, logits, 8.0)
    expected = nn.functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1), sequences[:, length:].flatten())
    assert torch.allclose(out.loss, expected, rtol=1e-4)


def test_a_contrast_that_counts_tokens_says_what_it_contrasts(llava):
    inputs = llava.make_inputs(PROMPT)
    plain = llava.model(**inputs).logits
    with wrap(llava.model, None, "m3id", forgetting=0.3), pytest.warns(UserWarning, match="pass labels"):
        found = llava.model(**inputs).logits
    assert torch.equal(found[:, :-1], plain[:, :-1])


def test_an_instruction_and_a_leading_question_outside_of_generate():
    model, processor = builtin()
    picture = {"type": "image", "image": Image.new("RGB", (96, 96), "white")}
    question = {"type": "text", "text": "There is a dog in the picture, isn't there?"}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [picture, question]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    plain = model(**inputs).logits[:, -1]
    for method in ("icd", "lqcd"):
        with wrap(model, processor, method):
            expected = torch.stack(model.generate(**inputs, **RECORD).logits)[0]
            found = model(**inputs).logits[:, -1]
        assert oracle.close(found, expected, 8.0)
        assert not oracle.close(found, plain)


def test_contrasts_that_cannot_be_followed_are_refused(llava, zoo_model):
    inputs = llava.make_inputs(PROMPT)
    with wrap(llava.model, None, "vcd") as guard:
        with guard.suspended():
            cache = llava.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="past_key_values was not filled under this guard"):
            llava.model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)
    blip = zoo_model("blip_2")
    with wrap(blip.model, None, "vcd"), pytest.raises(ValueError, match=r"vcd.*call model\.generate"):
        blip.model(**blip.make_inputs(PROMPT))
    assert_pristine(blip.model)


def test_answers_that_begin_at_different_positions_are_refused(llava):
    inputs = llava.make_inputs([*PROMPT, *PROMPT])
    labels = inputs["input_ids"].clone()
    labels[0, :-3] = labels[1, :-2] = -100
    for method in ("vhr", "gift", "vcd"):
        with guarded(llava, method), pytest.raises(ValueError, match="begin at different positions"):
            llava.model(**inputs, labels=labels)
    with guarded(llava, "var"):
        llava.model(**inputs, labels=labels)  # which treats them alike
    labels[0, -3] = -100
    with guarded(llava, "vhr"):
        llava.model(**inputs, labels=labels)


@pytest.mark.parametrize("method", ["var", "pai"])
def test_the_class_function_is_refused(llava, method):
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, method):
        with pytest.raises(ValueError, match=r"call model\.generate"):
            type(llava.model).generate(llava.model, **inputs, max_new_tokens=2)
        run(llava.model, inputs)
    type(llava.model).generate(llava.model, **inputs, max_new_tokens=2)
