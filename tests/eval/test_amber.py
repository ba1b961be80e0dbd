"""AMBER's yes/no part, and the score of both parts: reader and numbers on a small set made here."""

import json

import pytest
from run_records import write_run
from task_sources import make_sources

from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.page import build_report
from vlm_guard.eval.report.tables import render_table
from vlm_guard.eval.tasks.amber import AmberScore, AmberTask, read_amber, read_amber_answers, score_amber
from vlm_guard.eval.tasks.amber_generative.task import AmberGenerativeTask
from vlm_guard.eval.tasks.base import Task

SAMPLED = {"do_sample": True, "num_beams": 1, "batch_size": 4, "seed": 0, "checkpoint": {}}

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog"], "hallu": []},
    {"id": 2, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 4, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 5, "type": "discriminative-attribute-action", "truth": "no"},
    {"id": 6, "type": "discriminative-relation", "truth": "yes"},
    {"id": 7, "type": "relation", "truth": "no"},
]


@pytest.fixture
def files(tmp_path):
    queries = tmp_path / "query_all.json"
    queries.write_text(json.dumps([{"id": one["id"], "image": "AMBER_1.jpg", "query": "?"} for one in ANNOTATIONS]))
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(ANNOTATIONS))
    return queries, annotations


def test_yes_no_questions_are_read(files):
    questions = read_amber(*files)
    assert [question.question_id for question in questions] == [2, 3, 4, 5, 6, 7]
    assert [(question.dimension, question.part) for question in questions] == [
        ("existence", "existence"),
        ("attribute", "state"),
        ("attribute", "number"),
        ("attribute", "action"),
        ("relation", "relation"),
        ("relation", "relation"),
    ]


def test_score_by_hand(files):
    questions = read_amber(*files)  # labels: no, yes, no, no, yes, no
    report = score_amber(questions, ["No", "No", "No", "Yes", "Yes", "no"])
    assert report["all"]["correct"] == 3
    assert (report["all"]["label_no"], report["all"]["answered_no"], report["all"]["correct_no"]) == (4, 3, 2)
    assert report["all"]["unparsed"] == 1  # "no" is not exactly "No"
    assert (report["all"]["accuracy"], report["all"]["precision"], report["all"]["recall"]) == (50.0, 66.7, 50.0)
    assert report["all"]["f1"] == round(2 * 0.667 * 0.5 / (0.667 + 0.5 + 0.0001) * 100, 1) == 57.2
    assert report["attribute"]["questions"] == 3
    assert report["relation"]["accuracy"] == 50.0
    assert report["existence"]["f1"] == round(2 / 2.001 * 100, 1)
    assert json.loads(json.dumps(report)) == report


def test_the_published_rates_give_the_published_f1():
    """LLaVA-1.5-7B: precision 93.2 and recall 62.4 are printed with F1 74.7."""
    score = AmberScore(questions=10000, correct=6240, label_no=10000, answered_no=6695, correct_no=6240, unparsed=0)
    record = score.to_dict()
    assert (record["precision"], record["recall"], record["f1"]) == (93.2, 62.4, 74.7)


def test_no_answer_is_no_error(files):
    report = score_amber(read_amber(*files), [""] * 6)
    assert (report["all"]["accuracy"], report["all"]["f1"], report["all"]["unparsed"]) == (0, 0, 6)


def test_answers_are_matched_by_id(files, tmp_path):
    questions = read_amber(*files)
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([{"id": number, "response": f"r{number}"} for number in (7, 6, 5, 4, 3, 2)]))
    assert read_amber_answers(questions, path) == ["r2", "r3", "r4", "r5", "r6", "r7"]
    path.write_text(json.dumps([{"id": 2, "response": "Yes"}]))
    with pytest.raises(ValueError, match="no answer to 5 of 6 questions"):
        read_amber_answers(questions, path)
    path.write_text(json.dumps([{"id": 2}]))
    with pytest.raises(ValueError, match="needs 'id' and 'response'"):
        read_amber_answers(questions, path)


def test_broken_files_are_explained(files, tmp_path):
    queries, annotations = files
    annotations.write_text(json.dumps(ANNOTATIONS[:3]))
    with pytest.raises(ValueError, match="has nothing on question 4"):
        read_amber(queries, annotations)
    annotations.write_text(json.dumps([{**one, "type": "new"} for one in ANNOTATIONS]))
    with pytest.raises(ValueError, match="the type 'new'"):
        read_amber(queries, annotations)
    queries.write_text(json.dumps([{"id": 1}]))
    with pytest.raises(ValueError, match="has no image, query"):
        read_amber(queries, annotations)


# ---- the score of both parts


def says(first: str):
    """Answers of a made-up model: a description with a dog, a cat on the first picture, and `first` to questions."""

    def answer(task: str, image_id: int, prompt: str) -> str:
        if task == "amber":
            return first if "(1)" in prompt or "(3)" in prompt else "No"
        return "a dog and a cat" if image_id == 1 else "a dog"

    return answer


@pytest.fixture
def parts(tmp_path) -> list[Task]:
    folder = make_sources(tmp_path)["amber"].partition(":")[2]
    data = AmberTask.open_data(folder, None, AmberTask.Settings())
    return [AmberTask(data), AmberGenerativeTask(data)]


def test_the_score_is_made_of_both_parts(parts, tmp_path):
    methods = {"none": says("Yes"), "var": says("No")}
    both = write_run(tmp_path / "both", tmp_path, methods, tasks=parts)
    # CHAIR: one of four nouns. Labels: every third of 15 is no; all no but questions 1 and 3, or all.
    chair, precision, recall = 1 / 4, 4 / 13, 4 / 5
    plain, other = (method.estimates["amber_generative.score"] for method in both.methods)
    assert plain.value == pytest.approx((1 - chair + 2 * precision * recall / (precision + recall)) / 2)
    assert plain.low < plain.value < plain.high and plain.images == 3
    precision, recall = 5 / 15, 1
    assert other.value == pytest.approx((1 - chair + 2 * precision * recall / (precision + recall)) / 2)
    change = both.methods[1].difference_to_baseline["amber_generative.score"]
    assert change.value == pytest.approx(other.value - plain.value)
    # The cat is undecided without word vectors.
    assert both.methods[0].estimates["amber_generative.score_high"].value == pytest.approx(plain.value + chair / 2)
    assert "AMBER score" in render_table(both, "markdown")
    for place, part in enumerate(parts):
        write_run(tmp_path / f"part{place}", tmp_path, methods, tasks=[part])
    joined = compare_runs([tmp_path / "part1", tmp_path / "part0"])
    assert joined.results.methods[0].estimates["amber_generative.score"] == plain
    assert joined.results.methods[1].difference_to_baseline["amber_generative.score"] == change
    assert joined.results.methods[0].estimates.keys() == both.methods[0].estimates.keys()
    assert "AMBER score" in build_report(joined)


def test_a_missing_part_is_said_and_parts_that_do_not_fit_are_refused(parts, tmp_path):
    for place, part in enumerate(parts):
        write_run(tmp_path / f"part{place}", tmp_path, {"none": says("Yes")}, tasks=[part])
        alone = compare_runs([tmp_path / f"part{place}"])
        assert "amber_generative.score" not in alone.results.methods[0].estimates
        (note,) = alone.results.notes
        assert note.startswith(f"no AMBER score, (100 - CHAIR + F1) / 2: this has only {part.name}. Ask both parts")
    write_run(tmp_path / "more", tmp_path, {"none": says("Yes"), "var": says("No")}, tasks=parts[:1])
    with pytest.raises(ValueError, match="cannot be put together: methods"):
        compare_runs([tmp_path / "part1", tmp_path / "more"])
    write_run(tmp_path / "sampled", tmp_path, {"none": says("Yes")}, tasks=parts[:1], decoding=SAMPLED)
    with pytest.raises(ValueError, match=r"decoding\.do_sample is False in one and True"):
        compare_runs([tmp_path / "part1", tmp_path / "sampled"])
