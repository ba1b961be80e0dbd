"""The self-check against one whole prompt for every question: each alone in one family, the unshared way in all."""

import pytest
import torch
from PIL import Image

from vlm_guard import builtin, wrap
from vlm_guard.eval.run.models import prepare_processor
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.scenes.render import render
from vlm_guard.grounding import self_check
from vlm_guard.grounding.presence import answer_ids, with_article
from vlm_guard.grounding.shared_prompt import SharedPrompt
from zoo import FAMILIES, UNEQUAL_PROMPTS, Prompt, assert_pristine, families, tiny_processor

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
NOUNS = [["dog", "pizza", "orange"], ["cat"]]
GUARDED = sorted(name for name in families() if FAMILIES[name].dispatches)
# Their prompts look ahead (PaliGemma, Gemma 3), or their caches hold more than keys.
UNSHARED = {"gemma3", "paligemma", "paligemma2", "mllama", "lfm2_vl", "qwen3_5", "qwen3_5_moe"}
UNSHARED |= {"gemma4_shared", "minicpm_v", "minimax_m3_sparse"}


@pytest.fixture
def reads_shared(monkeypatch):
    """Whether each prompt that was read could be shared."""
    seen = []
    read = SharedPrompt.read.__func__

    def watch(cls, *args, **kwargs):
        result = read(cls, *args, **kwargs)
        seen.append(result is not None)
        return result

    monkeypatch.setattr(SharedPrompt, "read", classmethod(watch))
    return seen


@pytest.mark.parametrize("family", GUARDED)
def test_shared_equals_every_question_with_its_whole_prompt(family, zoo_model, reads_shared):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with wrap(zoo.model, tiny_processor(), "none") as guard:
        together = self_check(guard, inputs, NOUNS)
        apart = self_check(guard, inputs, NOUNS, shared=False)
    assert [len(row) for row in together] == [3, 1]
    for mine, expected in zip(together, apart, strict=True):
        assert mine == pytest.approx(expected, abs=2e-3)
    # Ovis2's markers are embedded with their picture, and the tests' tokenizer spells unknown words with one of them.
    assert reads_shared == ([] if family == "ovis2" else [family not in UNSHARED]), "whether the prompt was read once"
    assert_pristine(zoo.model)


@pytest.fixture(scope="module")
def scenes():
    """The built-in model with two scenes in one padded batch, and what encodes another question about them."""
    model, processor = builtin()
    prepare_processor(processor)
    pictures = [picture_of(seed) for seed in (3, 4)]
    template = find_template(processor)

    def encode(rows, questions):
        inputs = template.encode(processor, [pictures[row] for row in rows], questions)
        return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}

    return model, processor, encode


def picture_of(seed):
    return Image.fromarray(render("common", 20261130, seed).pixels)


def test_equals_the_question_asked_alone(scenes):
    """The slow way: the question as a user asks it, one picture at a time, one pass without a cache."""
    model, processor, encode = scenes
    nouns = [["dog", "dining table", "orange"], ["person"]]
    inputs = encode([0, 1], ["Please describe this image in detail.", "What is this?"])
    with wrap(model, processor, "none") as guard:
        found = self_check(guard, inputs, nouns)
    yes, no = answer_ids(processor.tokenizer)
    assert set(processor.tokenizer.convert_ids_to_tokens(yes)) == {"Yes", "ĠYes", "Ġyes"}, "no single letters"
    for row, listed in enumerate(nouns):
        for noun, value in zip(listed, found[row], strict=True):
            with torch.no_grad():
                alone = encode([row], [f"Is there {with_article(noun)} in the image?"])
                logits = model(**alone, use_cache=False).logits[0, -1].float()
            assert value == pytest.approx(float(logits[yes].logsumexp(0) - logits[no].logsumexp(0)), abs=2e-3)


def test_any_method_stands_aside_and_other_words_can_be_asked(scenes):
    model, processor, encode = scenes
    inputs = encode([0], ["Please describe this image in detail."])
    with wrap(model, processor, "none") as guard:
        expected = self_check(guard, inputs, [["dog"]])
        other = self_check(guard, inputs, [["dog"]], question="Can you see {noun}?")
    assert other != expected
    for method in ("pai:gain=1", "vcd"):
        with wrap(model, processor, method) as guard:
            assert self_check(guard, inputs, [["dog"]]) == expected


def test_a_conversation_is_asked_in_place_of_its_first_question(scenes):
    """What stands behind the first answer plays no part."""
    model, processor, encode = scenes
    short = encode([0], ["What is this?"])
    longer = processor.tokenizer.encode(" A dog. USER: Sure? ASSISTANT:", add_special_tokens=False)
    more = torch.cat((short["input_ids"], torch.tensor([longer])), 1)
    conversation = {**short, "input_ids": more, "attention_mask": torch.ones_like(more)}
    with wrap(model, processor, "none") as guard:
        expected, found = (self_check(guard, inputs, [["dog"]])[0] for inputs in (short, conversation))
    assert found == pytest.approx(expected, abs=1e-3)


def test_more_questions_than_one_pass_holds(scenes, monkeypatch):
    model, processor, encode = scenes
    inputs = encode([0, 1], ["What is this?"] * 2)
    nouns = [["dog", "cat", "car"], ["person", "tree"]]
    with wrap(model, processor, "none") as guard:
        expected = self_check(guard, inputs, nouns)
        monkeypatch.setattr("vlm_guard.grounding.shared_prompt.ROWS_AT_ONCE", 2)
        for mine, other in zip(self_check(guard, inputs, nouns), expected, strict=True):
            assert mine == pytest.approx(other, abs=1e-3)
        assert self_check(guard, inputs, [[], []]) == [[], []]


def test_refusals(scenes, zoo_model):
    model, processor, encode = scenes
    inputs = encode([0], ["What is this?"])
    with wrap(model, processor, "none") as guard:
        with pytest.raises(ValueError, match="must contain"):
            self_check(guard, inputs, [["dog"]], question="Is it there?")
        with pytest.raises(ValueError, match="1 rows, nouns were given for 2"):
            self_check(guard, inputs, [["dog"], ["cat"]])
        with pytest.raises(ValueError, match="needs the prompt as input_ids"):
            self_check(guard, {"pixel_values": inputs["pixel_values"]}, [["dog"]])
    zoo = zoo_model("llava")
    with wrap(zoo.model, None, "none") as guard, pytest.raises(ValueError, match="needs the model's processor"):
        self_check(guard, zoo.make_inputs(PROMPTS), NOUNS)
    with wrap(zoo.model, tiny_processor(), "none") as guard, pytest.raises(ValueError, match="row 0 has no picture"):
        self_check(guard, zoo.make_inputs([Prompt(images=0), Prompt()]), NOUNS)
