"""POPE's builder and reader: by hand, and against the published MSCOCO files where they are at hand."""

import json
from pathlib import Path

import pytest

from vlm_guard.cli import main
from vlm_guard.eval.data.coco import read_object_sets
from vlm_guard.eval.tasks.pope.questions import (
    build_questions,
    object_statistics,
    question_text,
    read_questions,
    sample_images,
    with_suffix,
    write_questions,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
STRATEGIES = ("random", "popular", "adversarial")
OBJECTS = {
    1: ["dog", "person", "car"],
    2: ["person", "chair", "cup", "dog"],
    3: ["person", "cup", "chair"],
    4: ["cat", "person"],  # too few objects for six questions
}


def test_statistics_by_hand():
    statistics = object_statistics([OBJECTS[1], OBJECTS[2], OBJECTS[3]])
    assert statistics.counts == {"dog": 2, "person": 3, "car": 1, "chair": 2, "cup": 2}
    assert statistics.by_count == ["person", "dog", "chair", "cup", "car"]
    assert statistics.companions["dog"] == ["person", "car", "chair", "cup"]
    assert statistics.companions["cup"] == ["person", "chair", "dog"]


def test_popular_and_adversarial_by_hand():
    objects = OBJECTS | {5: ["bed", "book", "dog"], 6: ["dog", "bed", "tv"]}
    # In how many images: person 3, dog 4, cup, chair and bed 2, car, book and tv 1 (image 4 is not asked about).
    questions = build_questions(objects, ("popular", "adversarial"))
    absent = {}
    for question in questions:
        if question.label == "no":
            absent.setdefault((question.strategy, question.image_id), []).append(question.object)
    assert absent["popular", 1] == ["chair", "cup", "bed"]
    assert absent["popular", 3] == ["dog", "bed", "car"]
    # Dog shares images with person and bed (2 each, person first seen), then car, chair, cup, book, tv.
    # Person shares images with dog, chair and cup (2 each), then car; car with dog and person only, so chance decides.
    assert absent["adversarial", 1][:2] == ["bed", "chair"]
    assert absent["adversarial", 1][2] in {"cup", "book", "tv"}
    # Nothing else shares an image with the cup or the chair of image 3 than what it has or was asked for.
    assert absent["adversarial", 3][0] == "dog"
    assert set(absent["adversarial", 3][1:]) <= {"car", "bed", "book", "tv"}
    assert ("popular", 4) not in absent


def test_a_handful_of_images_draws_on_other_categories():
    questions = build_questions({1: ["dog", "person", "car"], 2: ["person", "dog", "car"]})
    absent = {question.object for question in questions if question.label == "no"}
    assert absent
    assert not absent & {"dog", "person", "car"}


def test_questions_alternate_and_are_numbered_per_strategy():
    objects = {number: ["dog", "person", "car"] for number in range(5)} | {9: ["cat", "cup", "bowl", "tie", "bed"]}
    questions = build_questions(objects)
    for strategy in STRATEGIES:
        chosen = [question for question in questions if question.strategy == strategy]
        assert [question.question_id for question in chosen] == list(range(1, 37))
        assert [question.label for question in chosen] == ["yes", "no"] * 18
        for number, names in objects.items():
            mine = [question for question in chosen if question.image_id == number]
            assert [question.object for question in mine[::2]] == list(names[:3])
            absent = [question.object for question in mine[1::2]]
            assert len(set(absent)) == 3
            assert not set(absent) & set(names)
    positives = [[q.text for q in questions if q.strategy == s and q.label == "yes"] for s in STRATEGIES]
    assert positives[0] == positives[1] == positives[2]


def test_the_seed_decides_the_random_questions_only():
    objects = {number: ["dog", "person", "car"] for number in range(9)} | {9: ["cat", "cup", "bowl", "tie", "bed"]}
    first, again, other = (build_questions(objects, seed=seed) for seed in (0, 0, 1))
    assert first == again
    changed = {a.strategy for a, b in zip(first, other) if a != b}
    assert "random" in changed
    assert "popular" not in changed


def test_fewer_questions_per_image():
    questions = build_questions(OBJECTS, ("popular",), per_image=2)
    assert len(questions) == 8
    assert {question.image_id for question in questions} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategies": ("rare",)}, "'rare'; it must be one of random, popular, adversarial"),
        ({"per_image": 5}, "must be even"),
        ({"template": "old"}, "'old'; it must be one of original, published"),
        ({"objects": {1: ["dog"]}}, "none of the 1 images has the 3 objects"),
        ({"objects": {1: ["oak", "elm", "ash"]}}, "image 1 has, or was already asked about, all 3 objects"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_questions(**({"objects": {1: OBJECTS[1], 2: ["cat", "cup", "bed", "tie", "bowl"]}} | arguments))


def test_texts():
    assert question_text("dog") == "Is there a dog in the image?"
    assert question_text("apple") == "Is there an apple in the image?"
    assert question_text("apple", "published", "adversarial") == "Is there an apple in the imange?"
    assert question_text("apple", "published", "popular") == "Is there an apple in the image?"
    assert question_text("dog", "published", "adversarial") == "Is there a dog in the image?"


def test_suffixes():
    assert with_suffix("Is it?") == "Is it?"
    assert with_suffix("Is it?", "one_word") == "Is it? Please answer this question with one word."
    assert with_suffix("Is it?", "short_phrase") == "Is it?\nAnswer the question using a single word or phrase."
    with pytest.raises(ValueError, match="none, one_word, short_phrase"):
        with_suffix("Is it?", "short")


def test_drawing_images():
    objects = {number: ["dog", "cat", "cup"][: number % 4] for number in range(100)}
    drawn = sample_images(objects, 10, seed=3)
    assert len(drawn) == 10
    assert all(len(names) == 3 for names in drawn.values())
    assert list(drawn) == list(sample_images(dict(reversed(objects.items())), 10, seed=3))
    with pytest.raises(ValueError, match="only 25 have at least 3"):
        sample_images(objects, 26)


def test_questions_survive_a_file(tmp_path):
    objects = {1: ["dog", "cat", "apple"], 2: ["cup", "bed", "tie"]}
    questions = build_questions(objects, ("adversarial",), template="published")
    write_questions(questions, tmp_path / "q.json")
    assert read_questions(tmp_path / "q.json") == questions
    record = json.loads((tmp_path / "q.json").read_text().splitlines()[0])
    assert list(record)[:4] == ["question_id", "image", "text", "label"]


def test_published_layouts_are_read(tmp_path):
    records = [
        {"question_id": 1, "image": "2350343.jpg", "text": "Is there an oak in the imange?", "label": "yes"},
        {"question_id": "2", "image": "cat-1-b.png", "text": "What is it?", "label": "no"},
    ]
    path = tmp_path / "gqa_pope_seem_popular.json"
    path.write_text(json.dumps(records, indent=4))
    first, second = read_questions(path)
    assert (first.object, first.image_id, first.strategy) == ("oak", 2350343, "popular")
    assert (second.object, second.image_id, second.question_id) == ("", None, 2)
    assert read_questions(path, "adversarial")[0].strategy == "adversarial"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no questions"),
        ('{"question_id": 1, "image": "1.jpg"}', "record 1 has no text, label"),
        ('{"question_id": 1, "image": "1.jpg", "text": "Is it?", "label": "maybe"}', "must be yes or no"),
    ],
)
def test_broken_question_files_are_explained(tmp_path, content, message):
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_the_command_writes_question_files(tmp_path, capsys):
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps({"1": ["dog", "cat", "apple"], "2": ["cup", "bed", "tie"], "3": ["cat"]}))
    arguments = ["pope-questions", str(tmp_path / "out"), "--objects", str(objects), "--images", "2"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--strategy", "popular", "--leading", "statement"])
    assert end.value.code == 0
    assert "pope_popular.json: 12 questions" in capsys.readouterr().out
    plain = read_questions(tmp_path / "out" / "pope_popular.json")
    led = read_questions(tmp_path / "out" / "pope_popular_leading_statement_wrong.json")
    assert plain[0].label == "yes"
    assert led[0].text == f"{plain[0].text} I think the answer is no."
    with pytest.raises(SystemExit) as end:
        main(["pope-questions", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "--coco or --objects" in capsys.readouterr().err


@pytest.fixture(scope="module")
def published():
    if not (DATA / "pope").is_dir():
        pytest.skip("the published question files are not at hand")
    return {name: read_questions(DATA / "pope" / f"coco_pope_{name}.json") for name in STRATEGIES}


@pytest.fixture(scope="module")
def published_objects(published):
    """The objects of the 500 images; the order in which POPE saw them follows from its questions and counts."""
    truth = read_object_sets(DATA / "chair" / "gt_objects_pattern.json.gz")
    counts = json.loads((DATA / "pope" / "coco_ground_truth_objects.json").read_text())
    seen = {name: place for place, name in enumerate(counts)}
    objects = {}
    for question in published["popular"]:
        if question.label == "yes":
            objects.setdefault(question.image_id, []).append(question.object)
    for number, names in objects.items():
        names += sorted(set(truth[number]) - set(names), key=seen.__getitem__)
    assert object_statistics(objects.values()).counts == counts
    return objects


def test_the_published_questions_are_read(published):
    for name, questions in published.items():
        assert len(questions) == 3000
        assert {question.strategy for question in questions} == {name}
        assert all(question.object and question.image_id for question in questions)


def test_published_labels_agree_with_the_ground_truth(published, published_objects):
    for questions in published.values():
        for question in questions:
            assert (question.object in published_objects[question.image_id]) == (question.label == "yes")


def test_the_published_popular_questions_are_rebuilt_to_the_letter(published, published_objects):
    assert build_questions(published_objects, ("popular",)) == published["popular"]


def test_the_published_adversarial_questions_are_rebuilt(published, published_objects):
    built = build_questions(published_objects, ("adversarial",))
    companions = object_statistics(published_objects.values()).companions
    different = []
    for place, (mine, theirs) in enumerate(zip(built, published["adversarial"], strict=True)):
        if mine != theirs:
            assert mine.label == "no"
            positive = built[place - 1].object
            different.append(theirs.object in companions[positive])
    # Three objects share no image with anything else to ask for, so chance decided; one choice is between two
    # objects of equal count, whose order depends on objects the questions do not show.
    assert len(different) <= 4
    assert sum(different) <= 1


def test_random_questions_share_the_positives_with_the_published_ones(published, published_objects):
    built = build_questions(published_objects, ("random",))
    assert [question for question in built if question.label == "yes"] == [
        question for question in published["random"] if question.label == "yes"
    ]
