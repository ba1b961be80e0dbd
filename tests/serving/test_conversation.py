"""What is asked about the mentions of an answer, and what comes of the replies, without an engine."""

import math

import pytest

from vlm_guard import builtin
from vlm_guard.families.profiles import find_profile
from vlm_guard.grounding import Grounding, word_finder
from vlm_guard.serving.vllm.grounding.asked_mentions import MOST_THINGS, MentionReader
from vlm_guard.serving.vllm.grounding.conversation import LONGEST, Conversation

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
ASKED = {"role": "user", "content": [PICTURE, {"type": "text", "text": "Describe it."}]}
SYSTEM = {"role": "system", "content": "Be brief."}


def answered(text, *before):
    return [*(before or (ASKED,)), {"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def reader():
    model, processor = builtin()
    offered = ("lens", "self_check")
    return MentionReader(tokenizer=processor.tokenizer, profile=find_profile(model.config), offered=offered)


def test_a_question_takes_the_place_of_what_was_asked_about_the_picture():
    turn = {"role": "user", "content": "And what else?"}
    said = Conversation.of(answered("A dog.", SYSTEM, ASKED, {"role": "assistant", "content": "A cat."}, turn))
    asked = said.question("Is there a dog?")
    assert asked == [SYSTEM, {"role": "user", "content": [PICTURE, {"type": "text", "text": "Is there a dog?"}]}]
    assert said.prompt[1] == ASKED and said.answer == "A dog."


def test_a_conversation_knows_whether_it_shows_a_picture():
    plain = {"role": "user", "content": [{"type": "text", "text": "Hi"}, "there"]}
    assert Conversation.of(answered("A dog.")).shows_picture
    assert not Conversation.of(answered("A dog.", plain)).shows_picture
    assert not Conversation.of(answered("A dog.", {"role": "user", "content": "Hi"})).shows_picture


def test_an_answer_may_come_in_parts_of_text():
    parts = [{"type": "text", "text": "A dog "}, "and ", {"type": "output_text", "output_text": "a cat."}]
    assert Conversation.of(answered(parts)).answer == "A dog and a cat."


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "given None; it must be a list of messages"),
        ([ASKED], "of which the last is the assistant's answer"),
        ([ASKED, ASKED], "the last one is of the 'user'"),
        ([ASKED, {"content": "A dog."}], "messages\\[1\\]: given"),
        ([ASKED, "A dog."], "messages\\[1\\]: given 'A dog.'"),
        (answered(None), "the content of the last one is None"),
        (answered([PICTURE]), "it must be the answer's text"),
        (answered([{"type": "text"}]), "it must be the answer's text"),
        (answered("a" * (LONGEST + 1)), f"at most {LONGEST}"),
    ],
)
def test_what_is_no_conversation_with_an_answer(messages, reason):
    with pytest.raises(ValueError, match=reason):
        Conversation.of(messages)


def test_every_thing_is_asked_about_once(reader):
    asked = reader.read(Conversation.of(answered("  A dog, a cat and an umbrella. The dog is small.")))
    assert asked.things == ["dog", "cat", "umbrella"] and len(asked.words) == 4 and asked.reads_lens
    texts = [messages[-1]["content"][-1]["text"] for messages in asked.requests]
    assert texts == [f"Is there {thing} in the image?" for thing in ("a dog", "a cat", "an umbrella")]


def test_the_lens_alone_reads_the_prompt_as_it_is(reader):
    asked = reader.read(Conversation.of(answered("A dog and a cat.")), Grounding(parts=("lens",)))
    assert asked.requests == [[ASKED]] and asked.reads_lens
    assert not reader.read(Conversation.of(answered("Nothing here.")), Grounding(parts=("lens",))).requests


def test_values_are_log_odds_and_scores_those_of_the_profile(reader):
    asked = reader.read(Conversation.of(answered("A dog is here. There is a cat.")), Grounding(repair="drop"))
    yes, no = reader.yes_and_no
    spread = {**{token: math.log(0.6 / len(yes)) for token in yes}, **{token: math.log(0.2 / len(no)) for token in no}}
    assert asked.value(spread) == pytest.approx(math.log(0.6 / 0.2))
    box = {"image": 0, "left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}
    answer = asked.result([5.0, -9.0], {"log_probs": [-0.2, -9.0], "boxes": [box, None]})
    dog, cat = answer.mentions
    weights = asked.weights
    logit = weights["bias"] + weights["lens"] * -0.2 + weights["self_check"] * 5.0
    assert dog.score == pytest.approx(1 / (1 + math.exp(-logit))) and dog.parts == {"lens": -0.2, "self_check": 5.0}
    assert dog.verdict == "grounded" and dog.box.right == 0.5 and (dog.start, dog.end) == (2, 5)
    assert cat.verdict == "doubtful" and cat.box is None
    assert answer.repaired.text == "A dog is here." and answer.repaired.below > 0


def test_without_a_picture_nothing_is_asked(reader):
    asked = reader.read(Conversation.of(answered("A dog.", {"role": "user", "content": "Hi"})))
    assert asked.requests == [] and not asked.reads_lens
    assert [mention.verdict for mention in asked.result([], None).mentions] == ["unchecked"]


def test_characters_that_the_tokenizer_does_not_know_leave_the_words_alone(reader):
    asked = reader.read(Conversation.of(answered("A dog \N{SNOWMAN}\N{CJK UNIFIED IDEOGRAPH-4E2D} and a cat.")))
    assert asked.things == ["dog", "cat"] and all(asked.words)
    text = asked.answer.text
    assert [text[found.start : found.end] for found in asked.answer.found] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        (Grounding(parts=("logp",)), "A dog.", "logp is not measured by this engine; it measures lens, self_check"),
        (Grounding(repair="rewrite"), "A dog.", "allowed: drop"),
        (Grounding(lens_layers=(0, 2)), "A dog.", "lens_layers is \\[0, 2\\]: inside vLLM"),
        (
            Grounding(find=word_finder([f"thing{number}" for number in range(MOST_THINGS + 1)])),
            " ".join(f"thing{number}" for number in range(MOST_THINGS + 1)),
            f"at most {MOST_THINGS}",
        ),
    ],
)
def test_what_cannot_be_measured_here(reader, settings, text, reason):
    with pytest.raises(ValueError, match=reason):
        reader.read(Conversation.of(answered(text)), settings)
