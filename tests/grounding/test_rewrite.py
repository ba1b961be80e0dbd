"""Sentences decoded again: without the doubtful things, once, and dropped where the new one is no better."""

import pytest
import torch
from PIL import Image

from vlm_guard import builtin, wrap
from vlm_guard.eval.run.models import prepare_processor
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.scenes.render import render
from vlm_guard.grounding import FoundMention, Grounding, ground, self_check, word_finder
from vlm_guard.grounding.repair import repaired_sentences

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def asked():
    """The built-in model with two scenes and answers that were written by hand, in one batch."""
    model, processor = builtin()
    prepare_processor(processor)
    pictures = [Image.fromarray(render("common", 20261130, number).pixels) for number in (0, 1)]
    inputs = find_template(processor).encode(processor, pictures, ["Please describe this image in detail."] * 2)
    inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    return model, processor, inputs


def sequences_of(processor, inputs, texts):
    ids = [processor.tokenizer.encode(f" {text}", add_special_tokens=False) for text in texts]
    longest = max(map(len, ids))
    pad = processor.tokenizer.pad_token_id
    answers = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    return torch.cat((inputs["input_ids"], answers), 1)


def present(model, processor, inputs):
    """Two things that the model says are in each picture."""
    with wrap(model, processor, "none") as guard:
        output = guard.generate(**inputs, max_new_tokens=40, grounding=True)
    return [[mention.noun for mention in row if mention.verdict == "grounded"] for row in output.mentions]


def absent(model, processor, inputs):
    """What the model is surest not to see in the first picture."""
    things = ["zebra", "pizza", "toilet", "surfboard", "oven"]
    with wrap(model, processor, "none") as guard:
        values = self_check(guard, inputs, [things, []])[0]
    return things[values.index(min(values))]


def test_a_sentence_that_no_rule_can_cut_is_written_again(asked):
    model, processor, inputs = asked
    there, gone = present(model, processor, inputs), absent(model, processor, inputs)
    # The doubtful thing is the subject, so that no rule applies.
    seen = there[0][-1]
    texts = [f"There is a {seen}. A {gone} near a {seen} sits. It is day.", f"There is a {there[1][-1]}."]
    settings = Grounding(find=word_finder([gone, *there[0], *there[1]]), repair="rewrite", repair_below=0.5)
    with wrap(model, processor, "none") as guard:
        dropped, _ = ground(
            guard,
            inputs,
            sequences_of(processor, inputs, texts),
            Grounding(find=settings.find, repair="drop", repair_below=0.5),
        )
        again, other = ground(guard, inputs, sequences_of(processor, inputs, texts), settings)
    assert [sentence.unclean for sentence in repaired_sentences(dropped.text, dropped.mentions)] == [False, True, False]
    assert [part.how for part in dropped.repaired.removed] == ["sentence"]
    assert dropped.repaired.text == texts[0].replace(f" A {gone} near a {seen} sits.", "")
    assert gone not in again.repaired.text.lower()
    assert again.repaired.text.startswith(f"There is a {seen}.") and again.repaired.text.endswith("It is day.")
    assert [part.how for part in again.repaired.removed] == ["rewritten"]
    assert other.repaired.text == texts[1] and other.repaired.removed == ()


def test_it_is_tried_once_and_dropped_when_it_is_doubtful_too(asked):
    model, processor, inputs = asked

    def everything(text):
        """Every word is a thing; the threshold finds all of them doubtful but the first answer's first sentence."""
        return [FoundMention("zebra", 0, 1)] if text else []

    settings = Grounding(find=everything, repair_below=1.0, repair="rewrite")
    texts = ["A zebra sits here", "A zebra sits here"]
    with wrap(model, processor, "none") as guard:
        answers = ground(guard, inputs, sequences_of(processor, inputs, texts), settings)
    assert [answer.repaired.text for answer in answers] == ["", ""]
    assert [[part.how for part in answer.repaired.removed] for answer in answers] == [["sentence"], ["sentence"]]


@pytest.mark.parametrize("method", ["none", "vcd", "pai:gain=0.4"])
def test_generate_repairs_beams_samples_and_batches_under_any_method(asked, method):
    model, processor, inputs = asked
    settings = Grounding(threshold=0.97, repair_below=0.97, repair="rewrite")
    with wrap(model, processor, method) as guard:
        torch.manual_seed(0)
        output = guard.generate(**inputs, max_new_tokens=40, do_sample=True, num_return_sequences=2, grounding=settings)
        assert len(output.repaired) == 4
        for text, mentions, repaired in zip(output.texts, output.mentions, output.repaired, strict=True):
            doubtful = {mention.noun for mention in mentions if mention.verdict == "doubtful"}
            assert {noun for part in repaired.removed for noun in part.nouns} == doubtful
            if not doubtful:
                assert repaired.text == text and repaired.removed == ()
        assert any(repaired.removed for repaired in output.repaired), "the threshold is high enough to doubt something"
