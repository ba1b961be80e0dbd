"""CHAIR's wordnet mode: what it does with NLTK's data, and what it says without."""

import pytest

from vlm_guard.eval.tasks.chair import wordnet as chair_wordnet
from vlm_guard.eval.tasks.chair.scoring import ChairScorer, read_caption

needs_data = pytest.mark.skipif(bool(chair_wordnet.missing_nltk_data()), reason="NLTK's data is not installed")


def test_missing_data_is_named_with_the_command_that_gets_it(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(FileNotFoundError) as error:
        ChairScorer({1: ["dog"]}, "wordnet")
    command = "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
    assert command in str(error.value)


def test_tags_choose_the_part_of_speech(monkeypatch):
    import nltk

    tags = {"seated": "VBN", "men": "NNS", "red": "JJ", "quickly": "RB", ".": "."}
    asked = []
    monkeypatch.setattr(nltk, "pos_tag", lambda tokens: [(token, tags[token]) for token in tokens])
    monkeypatch.setattr(chair_wordnet, "_lemma", lambda token, part: asked.append((token, part)) or token)
    chair_wordnet.lemmas(list(tags))
    assert asked == [("seated", "v"), ("men", "n"), ("red", "a"), ("quickly", "r"), (".", "n")]


@needs_data
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A bus stands there.", ["bus"]),
        ("Two men are standing.", []),  # "men" keeps its form, which is no synonym
        ("Two women and people.", ["person", "person"]),
        ("They are seated.", ["chair"]),
    ],
)
def test_known_effects(caption, expected):
    assert [mention.node for mention in read_caption(caption, "wordnet").mentions] == expected
