import re

import pytest

from vlm_guard.demo.answering import Answer
from vlm_guard.demo.marked_answer import (
    answer_html,
    changed_words,
    escape,
    facts_html,
    legend_html,
    mentions_of,
    message_html,
)
from vlm_guard.demo.words import Word


def said(text, ending="finished"):
    words, place = [], 0
    for number, part in enumerate(text.split()):
        start = text.index(part, place)
        place = start + len(part)
        words.append(Word(text=part, start=start, end=place, steps=(number,)))
    tokens = tuple(range(len(words)))
    return Answer(text=text, words=tuple(words), token_ids=tokens, seconds=0.5, ending=ending)


def visible(markup):
    return re.sub(r"<[^>]*>", "", re.sub(r'<span class="vg-(sign|unseen)"[^>]*>.*?</span>', "", markup))


def test_mentions_are_true_false_or_unknown():
    text = "A dog and two wine glasses near a surfboard."
    marked = mentions_of(text, ["dog", "wine glass"])
    assert [(text[m.start : m.end], m.node, m.truth) for m in marked] == [
        ("dog", "dog", "grounded"),
        ("wine glasses", "wine glass", "grounded"),
        ("surfboard", "surfboard", "hallucinated"),
    ]
    assert {mention.truth for mention in mentions_of(text, None)} == {"neutral"}


def test_the_text_stays_as_it_was():
    text = "A dog, two wine glasses; (and a surfboard)."
    assert visible(answer_html("plain", said(text), None, ["dog"])) == text


def test_marks_do_not_depend_on_colour_alone():
    markup = answer_html("plain", said("A dog and a cat."), None, ["dog"])
    assert re.search(r'vg-grounded"[^>]*>.*?dog.*?✓.*?\(in the picture\)', markup)
    assert re.search(r'vg-hallucinated"[^>]*>.*?cat.*?✗.*?\(not in the picture\)', markup)


def test_every_word_is_a_button_with_its_number():
    markup = answer_html("guarded", said("A hot dog here"), None, None)
    assert re.findall(r'data-side="guarded" data-word="(\d)"', markup) == ["0", "1", "2", "3"]
    assert markup.count('class="vg-mention') == 1  # "hot dog" is one mention of two words


def test_changed_words_are_those_the_other_answer_lacks():
    mine, other = said("a person and a boat there"), said("a person near a kite there")
    assert {mine.words[number].text for number in changed_words(mine.words, other.words)} == {"and", "boat"}
    twice, once = said("a bird, a dog and a bird."), said("A bird sits there")
    assert {twice.words[number].text for number in changed_words(twice.words, once.words)} == {"dog", "and"}
    assert changed_words(mine.words, mine.words) == set()
    assert answer_html("plain", mine, other, None).count("vg-changed") == 2


@pytest.mark.parametrize(
    "evil", ["<img src=x onerror=alert(1)>", '"><script>', "${alert(1)}", "{{#each x}}", "`x`", "\\u003c"]
)
def test_what_the_model_says_is_shown_and_never_run(evil):
    for ending in ("running", "finished"):
        markup = answer_html("plain", said(evil, ending), None, None)
        assert "<img" not in markup and "<script" not in markup
        assert not set("{}`$\\") & set(markup)
    assert "<" not in escape(evil) and '"' not in escape(evil)
    assert "<script" not in message_html("error", evil)


def test_facts_of_a_scored_answer():
    facts = visible(facts_html(said("A dog and a cat."), ["dog", "bench"]))
    assert "1 of 2 mentions hallucinated" in facts and "50 %" in facts
    assert "1 of 2 objects named" in facts and "5 words" in facts and "0.50 s" in facts


def test_facts_without_ground_truth_claim_nothing():
    facts = visible(facts_html(said("A dog."), None))
    assert "truth not known" in facts and "CHAIR" not in facts


def test_an_early_end_is_said():
    assert "token limit" in facts_html(said("A dog", "limit"), None)
    assert "stopped" in facts_html(said("A dog", "stopped"), None)


def test_the_legend_says_when_the_truth_is_not_known():
    assert "vg-hallucinated" in legend_html(True) and "vg-neutral" not in legend_html(True)
    assert "vg-neutral" in legend_html(False) and "vg-hallucinated" not in legend_html(False)
