"""Scored mentions: what `generate` returns, and that a batch, beams, sampling and methods change no score."""

import dataclasses

import pytest
import torch
from PIL import Image

from vlm_guard import builtin, wrap
from vlm_guard.eval.run.models import prepare_processor
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.scenes.render import render
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.grounding import FoundMention, Grounding, ground, word_finder
from vlm_guard.grounding.score import fit_weights, score_of, weights_of
from zoo import FAMILIES, UNEQUAL_PROMPTS, Prompt, assert_pristine, families, tiny_processor

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
GUARDED = sorted(name for name in families() if FAMILIES[name].dispatches and name != "mllama")
TOKENS = 8


def first_words(text):
    """Finds the first two words of any text, whatever they are."""
    words = text.split()[:2]
    found, start = [], 0
    for word in words:
        start = text.index(word, start)
        found.append(FoundMention(word, start, start + len(word)))
        start += len(word)
    return found


WORDS = Grounding(find=first_words)


@pytest.mark.filterwarnings("ignore:no profile says")
@pytest.mark.parametrize("family", GUARDED)
def test_every_family_scores_its_answers(family, zoo_model):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(PROMPTS))
    with wrap(zoo.model, tiny_processor(), "none") as guard, torch.no_grad():
        plain = guard.generate(**inputs, max_new_tokens=3, do_sample=False)
        output = guard.generate(**inputs, max_new_tokens=3, do_sample=False, grounding=WORDS)
        again = ground(guard, inputs, output.sequences, WORDS)
    assert torch.equal(output.sequences, plain), "scores change no answer"
    for mentions, answer in zip(output.mentions, again, strict=True):
        for mine, other in zip(mentions, answer.mentions, strict=True):
            assert mine.parts == pytest.approx(other.parts, abs=5e-3), "the call's own keys serve as well as new ones"
    assert [len(row) for row in output.mentions] == [2, 2]
    for text, mentions in zip(output.texts, output.mentions, strict=True):
        for number, mention in enumerate(mentions):
            assert text[mention.start : mention.end] == mention.text
            assert mention.token_span == (number, number + 1)
            assert set(mention.parts) == {"lens", "self_check"} and 0 <= mention.score <= 1
            assert mention.parts["lens"] < 0
            assert mention.verdict == ("grounded" if mention.score >= 0.5 else "doubtful")
    assert_pristine(zoo.model)


@pytest.fixture(scope="module")
def scenes():
    """The built-in model, and inputs for scenes of given numbers in a padded batch."""
    model, processor = builtin()
    prepare_processor(processor)
    template = find_template(processor)
    prompts = ["Please describe this image in detail.", "What is in the picture?"]

    def encode(numbers):
        pictures = [Image.fromarray(render("common", 20261130, number).pixels) for number in numbers]
        inputs = template.encode(processor, pictures, [prompts[number % 2] for number in numbers])
        return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}

    return model, processor, encode


def assert_same(first, second):
    """Two lists of mentions, up to rounding."""
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert (one.text, one.start, one.token_span, one.box) == (other.text, other.start, other.token_span, other.box)
        assert one.parts == pytest.approx(other.parts, abs=5e-3)
        assert one.score == pytest.approx(other.score, abs=5e-3)


def test_a_batch_is_each_picture_alone(scenes):
    model, processor, encode = scenes
    with wrap(model, processor, "none") as guard:
        together = guard.generate(**encode([0, 1]), max_new_tokens=24, grounding=True)
        for number in range(2):
            alone = guard.generate(**encode([number]), max_new_tokens=24, grounding=True)
            assert alone.texts[0] == together.texts[number]
            assert_same(alone.mentions[0], together.mentions[number])


@pytest.mark.parametrize("method", ["vcd", "pai:gain=0.4", "carve"])
def test_scores_are_the_plain_models_under_any_method(scenes, method):
    """An answer of a method is scored as the same answer is when it stands there already."""
    model, processor, encode = scenes
    inputs = encode([0])
    with wrap(model, processor, "none") as guard:
        output = guard.generate(**inputs, max_new_tokens=12, grounding=True, method=method)
        (again,) = ground(guard, inputs, output.sequences)
    with wrap(model, processor, method) as guard:
        assert torch.equal(output.sequences, guard.generate(**inputs, max_new_tokens=12))
        (own,) = ground(guard, inputs, output.sequences)
    assert_same(output.mentions[0], again.mentions)
    assert_same(output.mentions[0], own.mentions)


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 3}], ids=str)
def test_beams_and_several_answers_to_one_prompt(scenes, settings):
    model, processor, encode = scenes
    inputs = encode([0, 1])
    count = settings.get("num_return_sequences", 1)
    with wrap(model, processor, "none") as guard:
        torch.manual_seed(0)
        output = guard.generate(**inputs, max_new_tokens=16, grounding=True, **settings)
        assert len(output.mentions) == len(output.texts) == 2 * count
        again = ground(guard, inputs, output.sequences)
    for row in range(2 * count):
        assert output.texts[row] == again[row].text
        assert_same(output.mentions[row], again[row].mentions)


@pytest.mark.filterwarnings("ignore:no profile says", "ignore:the prompt has no visual token")
def test_rows_without_a_picture_are_unchecked(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(images=0, text_after=6), Prompt(images=2, content=5)])
    with wrap(zoo.model, tiny_processor(), "none") as guard:
        output = guard.generate(**inputs, max_new_tokens=4, grounding=WORDS)
    assert [mention.verdict for mention in output.mentions[0]] == ["unchecked", "unchecked"]
    assert output.mentions[0][0].score is None and output.mentions[0][0].parts == {}
    assert all(mention.score is not None for mention in output.mentions[1])
    assert {mention.box.image for mention in output.mentions[1]} <= {0, 1}


def test_parts_thresholds_and_finders_are_chosen(scenes):
    model, processor, encode = scenes
    inputs = encode([0])
    with wrap(model, processor, "none") as guard:
        both = guard.generate(**inputs, max_new_tokens=16, grounding=True).mentions[0]
        lens = guard.generate(**inputs, max_new_tokens=16, grounding=Grounding(parts=("lens", "position")))
        checked = guard.generate(**inputs, max_new_tokens=16, grounding=Grounding(parts=("self_check",)))
        strict = guard.generate(**inputs, max_new_tokens=16, grounding=Grounding(threshold=1.0)).mentions[0]
        none = guard.generate(**inputs, max_new_tokens=16, grounding=Grounding(find=word_finder(["zebra crossing"])))
    assert [mention.parts["lens"] for mention in lens.mentions[0]] == pytest.approx(
        [mention.parts["lens"] for mention in both], abs=1e-3
    )
    assert [mention.parts["position"] for mention in lens.mentions[0]] == [-mention.token_span[0] for mention in both]
    assert [list(mention.parts) for mention in checked.mentions[0]] == [["self_check"]] * len(both)
    assert all(mention.box is None for mention in checked.mentions[0]), "the lens finds boxes"
    assert {mention.verdict for mention in strict} == {"doubtful"}
    assert none.mentions == [[]]


def test_probabilities_are_parts_that_a_score_needs_weights_for(scenes):
    model, processor, encode = scenes
    settings = Grounding(parts=("logp", "dependence"))
    with wrap(model, processor, "none") as guard:
        output = guard.generate(**encode([0, 1]), max_new_tokens=16, grounding=settings, output_logits=True)
    length = output.sequences.shape[1] - len(output.logits)
    for row, mentions in enumerate(output.mentions):
        assert mentions
        for mention in mentions:
            first = mention.token_span[0]
            said = output.logits[first][row].float().log_softmax(-1)[output.sequences[row, length + first]]
            assert mention.parts["logp"] == pytest.approx(float(said), abs=1e-3)
            assert mention.score is None and mention.verdict == "unchecked"
    assert sum(mention.parts["dependence"] for row in output.mentions for mention in row) > 0


def test_weights_come_from_the_profile(scenes):
    model, processor, encode = scenes
    weights = {"bias": 1.0, "lens": 0.5, "self_check": 0.25}
    fact = Fact(value={"lens+self_check": weights}, source="calibrated")
    profile = Profile(name="mine", match={}, facts={"grounding_score": fact})
    with wrap(model, processor, "none", profile=profile) as guard:
        mention = guard.generate(**encode([0]), max_new_tokens=40, grounding=True).mentions[0][0]
    expected = 1 + 0.5 * mention.parts["lens"] + 0.25 * mention.parts["self_check"]
    assert mention.score == pytest.approx(float(torch.tensor(expected).sigmoid()), abs=1e-6)


def test_without_weights_a_warning_says_that_nothing_was_measured(scenes):
    model, processor, encode = scenes
    guard = wrap(model, processor, "none", profile=Profile(name="empty", match={}))
    with guard, pytest.warns(UserWarning, match="no profile says how far"):
        guard.generate(**encode([0]), max_new_tokens=4, grounding=True)


def test_a_score_is_the_mean_log_odds_without_weights():
    assert score_of({"self_check": 2.0}, None) == pytest.approx(float(torch.tensor(2.0).sigmoid()))
    half = float(torch.tensor(0.5).log())
    assert score_of({"lens": half}, None) == pytest.approx(0.5)
    assert score_of({"lens": half, "self_check": 2.0}, None) == pytest.approx(float(torch.tensor(1.0).sigmoid()))
    assert score_of({"lens": 0.0}, None) > 0.99
    assert score_of({"position": -4.0}, None) is None


def test_fitted_weights_give_probabilities():
    """Labels drawn from known weights give them back."""
    source = torch.Generator().manual_seed(0)
    lens, check = torch.randn(4000, generator=source) - 2, torch.randn(4000, generator=source) * 3
    truth = torch.rand(4000, generator=source) < (0.5 + 1.0 * lens + 0.8 * check).sigmoid()
    parts = [{"lens": float(one), "self_check": float(other)} for one, other in zip(lens, check)]
    weights = fit_weights(parts, truth.tolist())
    assert weights == pytest.approx({"bias": 0.5, "lens": 1.0, "self_check": 0.8}, abs=0.25)
    with pytest.raises(ValueError, match="some are in the picture and some are not"):
        fit_weights(parts, [True] * 4000)
    broken = Profile(name="x", match={}, facts={"grounding_score": Fact(value={"lens": {"bias": 1}}, source="code")})
    with pytest.raises(ValueError, match="must hold a number for bias, lens"):
        weights_of(broken, ("lens",))


def test_refusals(zoo_model):
    mllama, llava = zoo_model("mllama"), zoo_model("llava")
    with wrap(mllama.model, tiny_processor(), "none") as guard:
        inputs = mllama.make_inputs(mllama.adapt(PROMPTS))
        with pytest.raises(ValueError, match="take the self-check alone"):
            guard.generate(**inputs, max_new_tokens=2, grounding=WORDS)
        asked = dataclasses.replace(WORDS, parts=("self_check",))
        output = guard.generate(**inputs, max_new_tokens=2, grounding=asked)
        assert all(mention.score is not None for row in output.mentions for mention in row)
    with wrap(llava.model, None, "none") as guard, pytest.raises(ValueError, match="needs the model's processor"):
        guard.generate(**llava.make_inputs(PROMPTS), max_new_tokens=2, grounding=True)
    with pytest.raises(ValueError, match="allowed: lens, self_check, logp, dependence, position"):
        Grounding(parts=("magic",))
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        Grounding(threshold=2)
    outside = dataclasses.replace(WORDS, find=lambda text: [FoundMention("dog", 0, len(text) + 1)])
    with wrap(llava.model, tiny_processor(), "none") as guard, pytest.raises(ValueError, match="outside of a text"):
        guard.generate(**llava.make_inputs(PROMPTS), max_new_tokens=2, grounding=outside)
