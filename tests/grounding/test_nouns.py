"""Which words name a thing."""

import pytest

from vlm_guard.grounding import find_mentions, word_finder
from vlm_guard.grounding.nouns import plural_forms, singular_of


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        ("A man riding a red bicycle next to two dogs.", ["man", "bicycle", "dog"]),
        ("The image shows a living room with a book and a clock.", ["room", "book", "clock"]),
        ("There is also a person in the scene.", ["person"]),
        ("In the background, several people are standing near the tall building.", ["person", "building"]),
        ("A plate of sandwiches sits on the wooden table, surrounded by cups and knives.", None),
        ("It is a sunny day and the scene looks calm.", []),
        ("", []),
        ("Yes", []),
        ("A woman's umbrella", [["woman's", "umbrella"][1]]),
        ("Three buses, a tie and the children.", ["bus", "tie", "child"]),
    ],
)
def test_nouns_by_rule(text, nouns):
    found = find_mentions(text)
    if nouns is None:
        nouns = ["plate", "sandwich", "table", "cup", "knife"]
    assert [mention.noun for mention in found] == nouns
    for mention in found:
        assert singular_of(text[mention.start : mention.end]) == mention.noun
    assert [mention.start for mention in found] == sorted(mention.start for mention in found)


def test_a_list_of_words():
    find = word_finder({"dog": "dog", "puppy": "dog", "dining table": "dining table", "table": "table"})
    text = "Two Puppies and a dog-sled under the dining tables; a hotdog, a table."
    assert [(mention.noun, text[mention.start : mention.end]) for mention in find(text)] == [
        ("dog", "Puppies"),
        ("dining table", "dining tables"),
        ("table", "table"),
    ]
    with pytest.raises(ValueError, match="is empty"):
        word_finder([" "])


@pytest.mark.parametrize("word", ["dog", "bus", "knife", "person", "puppy", "toy", "potato", "brush", "skis"])
def test_plurals_lead_back(word):
    for plural in plural_forms(word):
        assert singular_of(plural) in (word, f"{word}e", singular_of(word))
