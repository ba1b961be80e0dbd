import re
import threading

import pytest

from vlm_guard.demo.yes_no import AskedQuestion, ask, ladder, ladder_html, own_question, summary
from vlm_guard.eval.tasks.pope.leading_queries import LEADING_TEMPLATES
from vlm_guard.eval.tasks.pope.questions import PopeQuestion
from vlm_guard.method.registry import resolve_methods

TEMPLATE = next(iter(LEADING_TEMPLATES))


def asked(label="no", **answers):
    keys = {"plain": ("plain", False), "led": ("plain", True), "guarded": ("guarded", False), "held": ("guarded", True)}
    said = {keys[name]: text for name, text in answers.items()}
    return AskedQuestion(text="Is there a dog in the image?", label=label, group="random", answers=said)


def test_the_ladder_has_every_object_once_and_ends_with_the_hardest(pictures):
    for number in pictures.ids:
        picture = pictures.picture(number)
        rows = ladder(pictures.questions(picture))
        groups = [row.group for row in rows]
        assert groups == sorted(groups, key=["present", "random", "popular", "adversarial"].index)
        assert len({(row.group, row.text) for row in rows}) == len(rows)
        assert {row.label for row in rows if row.group == "present"} <= {"yes"}
        assert {row.label for row in rows if row.group != "present"} <= {"no"}


def test_giving_way_means_saying_what_was_suggested():
    assert asked("no", plain="No.", led="Yes.").gave_way("plain")
    assert not asked("no", plain="No.", led="No.").gave_way("plain")
    assert not asked("no", plain="Yes.", led="Yes.").gave_way("plain")  # was wrong before
    assert not asked("no", plain="No.", led="The image shows a park.").gave_way("plain")  # neither
    assert not asked("", plain="No.", led="Yes.").gave_way("plain")  # truth not known
    assert asked("yes", guarded="Yes", held="No").gave_way("guarded")


def test_asking_fills_every_cell(answering_model, pictures):
    picture = pictures.first()
    rows = ladder(pictures.questions(picture))[:2]
    steps = list(ask(answering_model, picture, rows, resolve_methods("vcd"), True, TEMPLATE, threading.Event()))
    assert len(steps) == 2
    keys = {(side, leading) for side in ("plain", "guarded") for leading in (False, True)}
    assert all(set(row.answers) == keys for row in steps[-1])
    plain = list(ask(answering_model, picture, rows, resolve_methods("vcd"), False, TEMPLATE, threading.Event()))[-1]
    assert [row.answers["plain", False] for row in plain] == [row.answers["plain", False] for row in steps[-1]]


def test_the_leading_form_is_what_is_asked(pictures):
    questions = []

    class Recorder:
        def answer(self, image, text, methods, settings, stop):
            from vlm_guard.demo.answering import Answer

            questions.append(text)
            return Answer(text="Yes.", ending="finished")

    row = AskedQuestion(text="Is there a dog in the image?", label="no", group="random")
    list(ask(Recorder(), pictures.first(), [row], (), True, TEMPLATE, threading.Event()))
    assert questions[0] == row.text and questions[2] == f"{row.text} {LEADING_TEMPLATES[TEMPLATE]['yes']}"


def test_a_stop_ends_the_ladder(answering_model, pictures):
    stop = threading.Event()
    stop.set()
    rows = ladder(pictures.questions(pictures.first()))
    assert list(ask(answering_model, pictures.first(), rows, (), False, TEMPLATE, stop)) == []


def test_own_questions_know_the_truth_when_they_can(pictures):
    picture = pictures.first()
    present = picture.objects[0]
    assert own_question(f"Is there a {present} in the image?", picture).label == "yes"
    absent = next(name for name in ("zebra", "kite", "toaster") if name not in picture.objects)
    assert own_question(f"Is there a {absent} in the image?", picture).label == "no"
    assert own_question("Is there a unicorn in the image?", picture).label == ""
    assert own_question(f"Is the {present} red?", picture).label == ""
    with pytest.raises(ValueError, match="empty"):
        own_question("  ", picture)


def test_the_table_shows_signs_words_and_the_suggestion():
    rows = [asked("no", plain="No.", led="Yes.", guarded="No.", held="No.")]
    shown = ladder_html(rows, True, "lqcd", TEMPLATE)
    assert "gave way" in shown and shown.count("✓") == 3 and shown.count("✗") == 1
    assert LEADING_TEMPLATES[TEMPLATE]["yes"] in shown and "lqcd" in shown
    assert "gave way to the suggestion in 1 of 1" in summary(rows, True)
    assert summary(rows, True).endswith("Guarded: 1 of 1 right, gave way to the suggestion in 0 of 1.")


def test_an_answer_that_is_neither_is_shown_as_such():
    rows = [asked("no", plain="<b>perhaps</b>", guarded="No.")]
    shown = ladder_html(rows, False, "pai", TEMPLATE)
    assert "neither" in shown and "<b>perhaps" not in shown
    assert "Plain: 0 of 1 right" in summary(rows, False)


def test_unanswered_rows_are_empty_not_wrong():
    shown = ladder_html([asked("no")], False, "pai", TEMPLATE)
    assert "✗" not in re.sub(r"<[^>]*>", "", shown) and "not asked yet" in shown
    assert summary([asked("no")], False) == ""


def test_questions_are_sentences():
    given = {"question_id": 1, "image_id": 1, "image": "1.png", "strategy": "random"}
    question = PopeQuestion(text="Is there a skis in the image?", label="yes", object="skis", **given)
    assert ladder([question])[0].text == "Is there a pair of skis in the image?"
