"""Tokens, singular forms and word pairs of CHAIR's text pipeline, on worked examples."""

import random
from itertools import pairwise

import pytest
from nltk.tokenize import NLTKWordTokenizer

from vlm_guard.eval.tasks.chair.text import (
    Word,
    cut_sentence,
    drop_toilet_seats,
    find_words,
    listed_words,
    locate_tokens,
    lower_with_offsets,
    object_vocabulary,
    singular,
    split_sentences,
    split_words,
)


def test_the_vocabulary_has_the_80_categories():
    vocabulary = object_vocabulary()
    assert len(vocabulary.categories) == 80
    assert set(vocabulary.node_of.values()) == set(vocabulary.categories)
    assert vocabulary.node_of["kitten"] == "cat"
    assert vocabulary.node_of["dining table"] == "dining table"
    assert vocabulary.word_pairs["baby bear"] == "bear"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("bus", "bu"),
        ("buses", "bus"),
        ("minibuses", "minibus"),
        ("abuses", "abus"),
        ("ties", "ty"),
        ("glass", "glas"),
        ("tennis", "tenni"),
        ("people", "person"),
        ("men", "man"),
        ("women", "woman"),
        ("skis", "ski"),
        ("scissors", "scissors"),
        ("knives", "knife"),
        ("geese", "goose"),
        ("police", "polouse"),
        ("sandwiches", "sandwich"),
        ("seated", "seated"),
        ("doggies", "doggies"),
        ("collies", "collies"),
        ("puppies", "puppy"),
        ("a", "a"),
        (".", "."),
        ("dogs'", "dog's"),
    ],
)
def test_singular_follows_the_reference_rules(token, expected):
    assert singular(token) == expected


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("a dog. a cat.", ["a dog. ", "a cat."]),
        ("a dog.\n\na cat", ["a dog.\n\n", "a cat"]),
        ('he said "stop." then left.', ['he said "stop." ', "then left."]),
        ("(a dog.) a cat.", ["(a dog.) ", "a cat."]),
        ("a car wash. a dog.", ["a car wash. a dog."]),  # "wash." is an abbreviation to the reference splitter
        ("mr. smith. a dog.", ["mr. smith. ", "a dog."]),
        ("at 5 p.m. a dog runs.", ["at 5 p.m. a dog runs."]),
        ("number 7. the dog.", ["number 7. the dog."]),
        ("number 7. 8 dogs.", ["number 7. ", "8 dogs."]),
        ("letter b. the dog.", ["letter b. the dog."]),
        ("wait... the dog.", ["wait... the dog."]),
        ("a cup.the dog", ["a cup.the dog"]),
        ("(cups, etc.). a dog.", ["(cups, etc.). ", "a dog."]),
        ("it cost $15,000. a dog.", ["it cost $15,000. ", "a dog."]),
        ("a dog? a cat!", ["a dog? ", "a cat!"]),
        ("", [""]),
        (".", ["."]),
    ],
)
def test_sentences_are_split_as_the_reference_does(text, sentences):
    assert list(split_sentences(text)) == sentences
    assert "".join(split_sentences(text)) == text


def test_words_are_cut_as_the_reference_does():
    text = "the dog's cup. don't use cups/mugs, \"x-ray\" (3.5 km)."
    expected = ["the", "dog", "'s", "cup", ".", "do", "n't", "use", "cups/mugs", ",", "``", "x-ray", "''"]
    assert split_words(text) == [*expected, "(", "3.5", "km", ")", "."]


def test_plain_sentences_are_cut_as_nltk_does():
    generator = random.Random(1)
    pieces = ["a", "b", "1", "-", "--", ",", ".", " ", "\n", "cannot", "gonna ", "x-ray", "1,000", "dog's", "e.g. "]
    pieces += ["'s", "'"]
    for _ in range(5000):
        sentence = "".join(generator.choice(pieces) for _ in range(generator.randint(0, 8)))
        assert cut_sentence(sentence) == NLTKWordTokenizer().tokenize(sentence)


def test_tokens_are_found_in_the_text():
    text = "the \"dog\" cannot ''bark'' \"cat\" ..."
    tokens = split_words(text)
    spans = locate_tokens(tokens, text)
    found = [text[start:end] for start, end in spans]
    assert [one for one in found if one.isalpha()] == ["the", "dog", "can", "not", "bark", "cat"]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    with pytest.raises(ValueError, match="'bird'"):
        locate_tokens(["bird"], text)


def test_tokens_of_any_text_are_found():
    generator = random.Random(0)
    alphabet = "ab.'\"` ,;:()[]-–—…“”‘’«»!?%&*/\n\té3dog's cannot gonna 'tis"
    for _ in range(500):
        text = "".join(generator.choice(alphabet) for _ in range(60)).lower()
        tokens = split_words(text)
        assert len(locate_tokens(tokens, text)) == len(tokens)


def test_lower_casing_that_changes_the_length_keeps_offsets():
    assert lower_with_offsets("A Dog") == ("a dog", None)
    lowered, offsets = lower_with_offsets("İ dog")  # this capital becomes two characters
    assert len(lowered) == 6
    assert offsets == [0, 0, 1, 2, 3, 4, 5]


def found(*words, pairs):
    return find_words(words, pairs, listed_words(("a", "b", "c", "toilet", "seat"), pairs))


def test_pairs_merge_greedily_from_the_left():
    pairs = {"a b": "ab", "b c": "bc", "x y": "a"}
    assert found("a", "b", "c", pairs=pairs) == ([Word("ab", 0, 1), Word("c", 2, 2)], 1)
    assert found("x", "b", "c", pairs=pairs) == ([Word("x", 0, 0), Word("bc", 1, 2)], 1)
    assert found("x", "y", "d", "a", pairs=pairs) == ([Word("a", 0, 1), Word("a", 3, 3)], 1)
    assert found("d", "a", pairs=pairs) == ([Word("a", 1, 1)], 0)
    assert found(pairs=pairs) == ([], 0)


def test_the_seat_of_a_toilet_is_no_chair():
    words, _ = found("toilet", "and", "seat", pairs={})
    assert drop_toilet_seats(words) == [Word("toilet", 0, 0)]
    words, _ = found("d", "seat", pairs={})
    assert drop_toilet_seats(words) == [Word("seat", 1, 1)]


def test_long_texts():
    """An expression that goes back and forth would not come to an end here."""
    assert len(split_words("a dog and " * 20_000)) == 60_000
    assert len(split_words("dog. " * 20_000)) == 40_000
    assert len(split_words("." * 20_000)) >= 1
