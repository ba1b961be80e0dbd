"""Modality interference: what the perturbations change, how answers are read, the drop by hand."""

import json
import random

import pytest
from PIL import Image

from vlm_guard.eval.tasks.modality_interference import (
    IMAGE_HEAVY,
    TEXT_HEAVY,
    MultipleChoice,
    add_related_text,
    choice_accuracy,
    chosen_option,
    interference,
    perturb,
)

OPTIONS = {"A": "a red fox", "B": "a teapot", "C": "an anchor"}


def question(answer="B", colour="blue"):
    return MultipleChoice(
        question="What is shown?", options=OPTIONS, answer=answer, image=Image.new("RGB", (8, 6), colour)
    )


def test_the_prompt():
    assert question().prompt == "What is shown?\nA: a red fox\nB: a teapot\nC: an anchor"


def test_the_answer_must_be_an_option():
    with pytest.raises(ValueError, match="'D' is none of the options A, B, C"):
        question("D")


def test_unrelated_text_goes_in_front():
    (changed,) = perturb([question()], "unrelated_text")
    first, rest = changed.prompt.split("\n", 1)
    assert rest == question().prompt
    assert first.count(".") >= 10
    assert changed.image is not None
    assert perturb([question()], "unrelated_text") == [changed]
    assert perturb([question()], "unrelated_text", seed=1) != [changed]


def test_related_text_is_about_a_wrong_option():
    for seed in range(10):
        changed = add_related_text(question(), random.Random(seed), {"a red fox": "Foxes live in dens."})
        assert changed.context in ("Foxes live in dens.", "This picture shows an anchor.")


@pytest.mark.parametrize(("name", "pixel"), [("full_black", (0, 0, 0)), ("full_white", (255, 255, 255))])
def test_plain_images(name, pixel):
    (changed,) = perturb([question()], name)
    assert changed.image.size == (8, 6)
    assert changed.image.getpixel((3, 3)) == pixel
    assert changed.prompt == question().prompt
    (made,) = perturb([MultipleChoice(question="2 + 2?", options={"A": "4"}, answer="A")], name)
    assert made.image.size == (336, 336)


def test_noise_images():
    (changed,) = perturb([question()], "noise_image")
    assert changed.image.size == (8, 6)
    assert len(set(changed.image.tobytes())) > 10


def test_switched_images_leave_none_in_place():
    questions = [question(colour=colour) for colour in ("red", "green", "blue", "white", "black")]
    for seed in range(10):
        switched = perturb(questions, "switched_image", seed)
        assert all(before.image is not after.image for before, after in zip(questions, switched))
        assert {id(one.image) for one in switched} == {id(one.image) for one in questions}
    with pytest.raises(ValueError, match="at least two"):
        perturb(questions[:1], "switched_image")


def test_unknown_perturbations_are_explained():
    with pytest.raises(ValueError, match=r"unrelated_text.*switched_image"):
        perturb([question()], "blur")
    assert set(IMAGE_HEAVY) == {"unrelated_text", "related_text"}
    assert set(TEXT_HEAVY) == {"noise_image", "full_black", "full_white"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B: a teapot", "B"),
        ("(C)", "C"),
        ("Option A.", "A"),
        ("I'd say C", "C"),
        ("It is a teapot.", "B"),
        ("A TEAPOT", "A"),  # the first capital that stands alone decides, as in the published script
        ("a teapot or an anchor", None),
        ("Z", None),
        ("", None),
        ("BBC", None),
    ],
)
def test_choices(text, expected):
    assert chosen_option(text, OPTIONS) == expected


def test_the_drop_by_hand():
    questions = [question("A"), question("B"), question("C"), question("B")]
    report = interference(
        questions,
        ["A", "B", "C", "A"],
        {"unrelated_text": ["A", "A", "A", "A"], "full_black": ["A", "B", "A", "B"]},
    )
    assert report["accuracy"] == {"origin": 0.75, "unrelated_text": 0.25, "full_black": 0.75}
    assert report["drop"] == {"unrelated_text": 0.5, "full_black": 0.0}
    assert report["interference"] == 0.25
    assert json.loads(json.dumps(report)) == report
    assert choice_accuracy([], []) == 0
    with pytest.raises(ValueError, match="zip"):
        choice_accuracy(questions, ["A"])
