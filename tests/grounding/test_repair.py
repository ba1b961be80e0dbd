"""Repair: no doubtful mention is left, what is left is a whole sentence, and nothing else is lost."""

import random

import pytest

from vlm_guard.eval.scenes.captions import brief_caption, detailed_caption, list_caption
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import render
from vlm_guard.eval.tasks.chair.scoring import read_caption
from vlm_guard.eval.tasks.grounding.repairing import faults_of
from vlm_guard.grounding import FoundMention, Mention, drop_doubtful, find_mentions
from vlm_guard.grounding.repair import first_sentence

SNOW = "The image shows a snowy slope with a snowboard and a pair of skis. There is also a person in the scene."
FRUIT = "There is a carrot, a banana, an apple, a piece of broccoli and a bottle in the image."
STREET = "The image shows a street with a train and a truck. There is also a car in the scene."


def scored(text, doubtful, found=None):
    """Mentions of a text, of which those of some nouns are doubtful."""
    return [
        Mention(
            text=text[mention.start : mention.end],
            noun=mention.noun,
            start=mention.start,
            end=mention.end,
            token_span=(0, 1),
            score=0.1 if mention.noun in doubtful else 0.9,
            verdict="doubtful" if mention.noun in doubtful else "grounded",
        )
        for mention in (find_mentions(text) if found is None else found)
    ]


@pytest.mark.parametrize(
    ("text", "doubtful", "left", "how"),
    [
        (SNOW, {"person"}, SNOW[: SNOW.index(" There")], ["sentence"]),
        (SNOW, {"ski"}, SNOW.replace(" and a pair of skis", ""), ["item"]),
        (SNOW, {"ski", "snowboard"}, SNOW.replace(" with a snowboard and a pair of skis", ""), ["phrase"]),
        (SNOW, {"slope", "snowboard", "ski", "person"}, "", ["sentence", "sentence"]),
        (SNOW, set(), SNOW, []),
        (FRUIT, {"bottle"}, "There is a carrot, a banana, an apple and a piece of broccoli in the image.", ["item"]),
        (FRUIT, {"carrot", "apple"}, "There is a banana, a piece of broccoli and a bottle in the image.", ["item"] * 2),
        (FRUIT, {"carrot", "banana", "apple", "bottle"}, "There is a piece of broccoli in the image.", ["item"] * 4),
        (STREET, {"train", "truck"}, "The image shows a street. There is also a car in the scene.", ["phrase"]),
        ("There are a dog and a cat on the sofa.", {"dog"}, "There is a cat on the sofa.", ["item"]),
        ("There are a dog and two cats here.", {"dog"}, "There are two cats here.", ["item"]),
        ("There is a dog and two cats.", {"dog"}, "There are two cats.", ["item"]),
        ("A dog and a cat are sitting here.", {"dog"}, "A cat is sitting here.", ["item"]),
        ("A dog, a cat and a bird sit here.", {"dog"}, "A cat and a bird sit here.", ["item"]),
        ("We see two cars, a bus, and several people.", {"bus"}, "We see two cars and several people.", ["item"]),
        # Nothing sure is left of these: the verb would not agree, or something hangs on the thing.
        ("A dog and a cat sit here.", {"dog"}, "", ["sentence"]),
        ("A man riding a horse next to a dog.", {"horse"}, "", ["sentence"]),
        ("A dog on a couch and a cat.", {"couch"}, "", ["sentence"]),
        ("There is a bird and a cat that sleeps.", {"cat"}, "", ["sentence"]),
        ("1. A dog.\n2. A cat.\n3. A bird.", {"cat"}, "1. A dog.\n3. A bird.", ["sentence"]),
        ("A dog barks. Mr. Smith holds a cat.", {"cat"}, "A dog barks.", ["sentence"]),
        ("A dog.\nA cat.\n\nA bird.", {"cat"}, "A dog.\n\nA bird.", ["sentence"]),
    ],
)
def test_what_is_left(text, doubtful, left, how):
    repaired = drop_doubtful(text, scored(text, doubtful))
    assert repaired.text == left
    assert [part.how for part in repaired.removed] == how
    for part in repaired.removed:
        assert text[part.start : part.end].strip(" ,") == part.text and set(part.nouns) <= doubtful
    assert {noun for part in repaired.removed for noun in part.nouns} == doubtful


def captions():
    """Captions of the kinds that the built-in model has learned."""
    found = []
    for number in range(60):
        scene = render("common", 7, number)
        objects = list(scene.objects)
        draws = Draws(9, number)
        found += [
            detailed_caption(draws, scene.scene_type, objects),
            brief_caption(draws, scene.scene_type, objects),
            list_caption(draws, objects),
        ]
    return found


def test_captions_stay_whole_whatever_is_doubtful():
    """Random verdicts on 180 captions: no doubtful object is left, no fault comes in, and little else goes."""
    generator = random.Random(0)
    lost = kept = 0
    for text in captions():
        found = [FoundMention(item.node, item.start, item.end) for item in read_caption(text).mentions]
        nouns = sorted({mention.noun for mention in found})
        doubtful = {noun for noun in nouns if generator.random() < 0.3}
        repaired = drop_doubtful(text, scored(text, doubtful, found))
        left = {mention.node for mention in read_caption(repaired.text).mentions}
        assert not left & doubtful, (text, doubtful, repaired.text)
        assert faults_of(repaired.text, text) == [], (text, doubtful, repaired.text)
        lost += len(set(nouns) - doubtful - left)
        kept += len(set(nouns) - doubtful)
    assert lost / kept < 0.05, f"{lost} of {kept} grounded objects went with the doubtful ones"


def test_faults_are_found():
    good = "A dog and a cat. A bird."
    assert faults_of(good, good) == []
    for bad, name in {
        "A dog and .": "space in front of a mark",
        "A dog and.": "dangling conjunction or preposition",
        "A dog  sits.": "double space",
        "A dog. a cat.": "sentence in lower case",
        "A dog, , a cat.": "mark without a word",
        "A dog": "no end",
    }.items():
        assert name in faults_of(bad, good)
        assert name not in faults_of(bad, bad), "what was wrong before is no fault of the repair"


def test_a_first_sentence_has_an_end():
    assert first_sentence(" A dog. A cat.") == "A dog."
    assert first_sentence("A dog that") == ""
    assert first_sentence("") == ""
