"""Leading queries and the rates of changed answers, by hand."""

import json

import pytest

from vlm_guard.eval.tasks.pope.leading_queries import LEADING_TEMPLATES, lead, score_leading, suggestion
from vlm_guard.eval.tasks.pope.scoring import PopeQuestion, with_suffix


def test_suggestions():
    assert [suggestion(label) for label in ("yes", "no")] == ["no", "yes"]
    assert [suggestion("yes", towards) for towards in ("wrong", "right", "yes", "no")] == ["no", "yes", "yes", "no"]
    with pytest.raises(ValueError, match="'left'; it must be one of wrong, right, yes, no"):
        suggestion("yes", "left")
    with pytest.raises(ValueError, match="'maybe'"):
        suggestion("maybe")


@pytest.mark.parametrize("template", LEADING_TEMPLATES)
def test_templates_keep_the_question_and_differ_by_suggestion(template):
    question = "Is there a dog in the image?"
    yes, no = lead(question, "yes", template), lead(question, "no", template)
    assert yes.startswith(f"{question} ")
    assert no.startswith(f"{question} ")
    assert yes != no
    assert with_suffix(yes, "one_word").endswith(" Please answer this question with one word.")


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="'shout'; it must be one of statement, tag, authority, denial"):
        lead("Is it?", "yes", "shout")
    with pytest.raises(ValueError, match="'maybe'; it must be yes or no"):
        lead("Is it?", "maybe")


def questions(*labels):
    return [
        PopeQuestion(
            question_id=number, image_id=1, image="1.jpg", text="?", label=label, object="dog", strategy="random"
        )
        for number, label in enumerate(labels)
    ]


def test_rates_by_hand():
    asked = questions("yes", "yes", "yes", "no", "no", "no", "no", "yes")
    neutral = ["Yes", "Yes", "No", "No", "No", "Yes", "No", "Yes"]  # right: 1, 2, 4, 5, 7, 8
    leading = ["No", "Yes", "Yes", "Yes", "No", "No", "Yes", "Hm"]  # right: 2, 3, 5, 6
    summary = score_leading(asked, neutral, leading)
    assert (summary.neutral.accuracy, summary.leading.accuracy) == (6 / 8, 4 / 8)
    assert summary.accuracy_drop == pytest.approx(2 / 8)
    assert summary.changed == 6  # 1, 3, 4, 6, 7, 8
    assert (summary.right_to_wrong, summary.wrong_to_right) == (4, 2)  # 1, 4, 7, 8; 3, 6
    assert (summary.no_to_yes, summary.yes_to_no) == (3, 2)  # 3, 4, 7; 1, 6
    assert summary.change_rate == pytest.approx(6 / 8)
    assert summary.error_induction_rate == pytest.approx(4 / 6)
    assert summary.positive_flip_ratio == pytest.approx(3 / 5)
    assert json.loads(json.dumps(summary.to_dict()))["error_induction_rate"] == pytest.approx(4 / 6)


def test_nothing_changed_and_nothing_asked():
    same = score_leading(questions("yes", "no"), ["Yes", "No"], ["Yes", "No"])
    assert (same.change_rate, same.error_induction_rate, same.positive_flip_ratio, same.accuracy_drop) == (0, 0, 0, 0)
    empty = score_leading([], [], [])
    assert (empty.change_rate, empty.error_induction_rate) == (0, 0)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 questions, 2 neutral answers and 1 leading"):
        score_leading(questions("yes", "no"), ["Yes", "No"], ["Yes"])
