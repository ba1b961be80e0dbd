"""LQCD: the neutral question, the positive branch, and neutral questions left alone."""

import contrast_oracle as oracle
import pytest
import torch

from vlm_guard import wrap
from vlm_guard.eval.tasks.pope.leading_queries import LEADING_TEMPLATES, lead
from vlm_guard.methods.lqcd.method import LQCD
from vlm_guard.methods.lqcd.neutral_question import neutralise
from zoo.prompts import BOS, IMAGE

QUESTION = "Is there a dog in the image?"
SUFFIX = " Please answer this question with one word."
RECORD = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize("template", LEADING_TEMPLATES)
@pytest.mark.parametrize("suggested", ["yes", "no"])
@pytest.mark.parametrize("suffix", ["", SUFFIX])
def test_every_leading_template_is_undone(template, suggested, suffix):
    assert neutralise(lead(QUESTION, suggested, template) + suffix) == QUESTION + suffix


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("There is a dog in the image, isn't there?", "Is there a dog in the image?"),
        ("The cat is black, isn't it? Answer in one word.", "Is the cat black? Answer in one word."),
        ("The dogs aren't asleep, are they?", "Are the dogs asleep?"),
        ("USER: \nI believe it is red. What colour is it? ASSISTANT:", "USER: \n What colour is it? ASSISTANT:"),
        ("What is this? I don't think it is a car, are you sure?", "What is this?"),
        ("Is it a car? In my opinion it is not.", "Is it a car?"),
        ("What colour is it? The answer should be red.", "What colour is it?"),
        ("It is red, right? What colour is it?", " What colour is it?"),
    ],
)
def test_leading_forms(given, expected):
    assert neutralise(given) == expected


@pytest.mark.parametrize(
    "neutral",
    [
        QUESTION,
        QUESTION + SUFFIX,
        "USER: \nPlease describe the image in detail. ASSISTANT:",
        "A chat between a curious user and an assistant. The assistant gives helpful answers. USER: ",
        "What do you think is the colour of the 3.5 m boat?",
        "Can I see a dog in the image? What should I know about it?",
        "Is the sign clearly visible?",
        "I think it is red.",  # nothing else would be left
        "",
    ],
)
def test_neutral_text_comes_back_unchanged(neutral):
    assert neutralise(neutral) == neutral


def prompt(tokenizer, text):
    before = tokenizer.encode("USER :", add_special_tokens=False)
    after = tokenizer.encode(text + " ASSISTANT :", add_special_tokens=False)
    return [BOS, *before, *[IMAGE] * 16, *after]


def batch(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.randn(len(rows), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def drop_opinion(text):
    """A neutraliser for the tiny tokenizer, which puts spaces around punctuation."""
    return text.replace("yes it is .", "")


@pytest.mark.parametrize("use_cache", [True, False])
def test_neutral_branch_is_the_positive_one_and_neutral_rows_are_left_alone(zoo_model, zoo_processor, use_cache):
    zoo, processor = zoo_model("llava"), zoo_processor("llava")
    tokenizer = processor.tokenizer
    question = "is there a dog in the image ?"
    leading = prompt(tokenizer, question + " yes it is .")
    rows = [leading, prompt(tokenizer, "what is this ?")]
    inputs = batch(rows)
    with wrap(zoo.model, processor, LQCD(strength=0.8, neutraliser=drop_opinion)) as guard:
        out = guard.generate(**inputs, **RECORD, use_cache=use_cache)
    assert torch.equal(out.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"]), "the given prompt"
    logits = torch.stack(out.logits, 1)
    one = {"pixel_values": inputs["pixel_values"][:1]}
    neutral = prompt(tokenizer, question)
    tokens, expected = oracle.decode(zoo, (one, neutral), (one, leading), oracle.formula(0.8, 0.1), 4)
    assert oracle.close(logits[0], expected, 4.0) and out.sequences[0, -4:].tolist() == tokens
    plain = zoo.model.generate(**inputs, **RECORD)
    assert oracle.close(logits[1], torch.stack(plain.logits, 1)[1])


def test_edits_act_on_the_neutral_branch(zoo_model, zoo_processor, monkeypatch):
    zoo, processor = zoo_model("llava"), zoo_processor("llava")
    leading = prompt(processor.tokenizer, "is this red ? yes it is .")
    inputs = batch([leading])
    seen = []
    combine = LQCD.combine_logits
    monkeypatch.setattr(LQCD, "combine_logits", lambda s, p, n, step: (seen.append((p, n)), combine(s, p, n, step))[1])
    from vlm_guard.methods.zerotuning import ZeroTuning

    with wrap(zoo.model, processor, [ZeroTuning(factor=0.3), LQCD(neutraliser=drop_opinion)]) as guard:
        out = guard.generate(**inputs, **RECORD)
        length = guard.state.prompt_length
    neutral = prompt(processor.tokenizer, "is this red ?")
    assert length == len(neutral), "the state that is left describes the positive branch"
    tokens = out.sequences[0, len(leading) :].tolist()
    one = {"pixel_values": inputs["pixel_values"]}
    for step, (positive, negative) in enumerate(seen):
        assert oracle.close(negative[0], oracle.next_logits(zoo, one, leading + tokens[:step]))
        with wrap(zoo.model, None, ZeroTuning(factor=0.3)):
            ids = torch.tensor([neutral + tokens[:step]])
            with torch.no_grad():
                edited = zoo.model(input_ids=ids, **one).logits[0, -1].float()
        assert oracle.close(positive[0], edited)


def test_neutraliser_by_import_path_and_bad_ones(zoo_model, zoo_processor):
    model, processor = zoo_model("llava").model, zoo_processor("llava")
    wrap(model, processor, "lqcd", neutraliser="vlm_guard.methods.lqcd.neutral_question:neutralise").remove()
    for bad in ("nowhere.at.all:function", "rule", "vlm_guard.methods.lqcd.neutral_question:missing"):
        with pytest.raises(ValueError, match="neutraliser"):
            wrap(model, processor, "lqcd", neutraliser=bad)
    assert (
        LQCD(neutraliser=neutralise).describe()["options"]["neutraliser"]
        == "vlm_guard.methods.lqcd.neutral_question:neutralise"
    )
