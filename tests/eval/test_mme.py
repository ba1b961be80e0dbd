"""MME's hallucination subset: reader and score on a small folder made here."""

import json

import pytest
from PIL import Image

from vlm_guard.eval.tasks.mme import parse_mme, read_mme, score_mme

SUFFIX = "Please answer yes or no."


@pytest.fixture
def folder(tmp_path):
    flat = tmp_path / "existence"
    nested = tmp_path / "count"
    for place in (flat, nested / "images", nested / "questions_answers_YN"):
        place.mkdir(parents=True)
    for number in (1, 2):
        lines = f"Is there a dog? {SUFFIX}\tYes\nIs there a cat? {SUFFIX}\tNo\n"
        (flat / f"00{number}.txt").write_text(lines)
        Image.new("RGB", (4, 4)).save(flat / f"00{number}.jpg")
        (nested / "questions_answers_YN" / f"00{number}.txt").write_text(lines)
        Image.new("RGB", (4, 4)).save(nested / "images" / f"00{number}.png")
    return tmp_path


def test_both_layouts_are_read(folder):
    questions = read_mme(folder, ("existence", "count"))
    assert [question.label for question in questions] == ["yes", "no"] * 4
    assert questions[0].text == f"Is there a dog? {SUFFIX}"
    assert [question.image.name for question in questions[::2]] == ["001.jpg", "002.jpg", "001.png", "002.png"]


def test_what_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match="subtask 'position'"):
        read_mme(folder)
    (folder / "existence" / "001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="no picture 001"):
        read_mme(folder, ("existence",))
    (folder / "count" / "questions_answers_YN" / "001.txt").write_text("Is there a dog?\n")
    with pytest.raises(ValueError, match="with a tab between them"):
        read_mme(folder, ("count",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        (" Yes, a dog", "yes"),
        ("No.", "no"),
        ("Not", "no"),
        ("There", "other"),
        ("", "other"),
    ],
)
def test_parser(text, expected):
    assert parse_mme(text) == expected


def test_score_by_hand(folder):
    questions = read_mme(folder, ("existence", "count"))
    report = score_mme(questions, ["Yes", "No", "Yes", "Yes", "Yes", "No", "yes", "hm"])
    existence, count = report["subtasks"]["existence"], report["subtasks"]["count"]
    assert (existence["correct"], existence["both_correct"], existence["other"]) == (3, 1, 0)
    assert (existence["accuracy"], existence["accuracy_plus"], existence["score"]) == (75, 50, 125)
    assert (count["score"], count["other"]) == (125, 1)
    assert report["total"] == 250
    assert json.loads(json.dumps(report)) == report


def test_all_right_is_200(folder):
    questions = read_mme(folder, ("existence",))
    assert score_mme(questions, [question.label for question in questions])["total"] == 200
