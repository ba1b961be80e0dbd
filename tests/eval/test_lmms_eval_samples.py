"""The files that lmms-eval writes with --log_samples, read by `chair` and `pope`."""

import json
from pathlib import Path

import pytest
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.data.lmms_eval_samples import plain_record


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def sample(number: int, answer: str, target: str, **metrics: object) -> dict:
    """A line as lmms-eval 0.7.3 wrote it for a task of local pictures, with a task's metrics."""
    return {
        "doc_id": number,
        "target": target,
        "filtered_resps": answer,
        "token_counts": [None],
        "doc_hash": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
        "input_media": ["pictures/cat.png"],
        **metrics,
        "input": "Is there a dog in the image?\nAnswer the question using a single word or phrase.",
    }


ASKED = (
    # number, label, answer, text
    ("1", "yes", "Yes", "Is there a dog in the image?"),
    ("2", "no", "Yes.", "Is there a cat in the image?"),
    ("1", "yes", "no", "Is there a dog in the image?"),
    ("2", "no", "No", "Is there a person in the image?"),
)


def pope_file(path: Path) -> Path:
    records = []
    for place, (number, label, answer, text) in enumerate(ASKED):
        metric = {"question_id": number, "score": 1.0, "prediction": answer.lower(), "ground_truth": label}
        record = sample(place, answer, label, pope_accuracy=metric, pope_f1_score=metric)
        records.append(record | {"input": f"{text}\nAnswer the question using a single word or phrase."})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_pope_samples_are_scored_with_their_own_labels(tmp_path, capsys):
    samples = pope_file(tmp_path / "20261130_samples_pope.jsonl")
    code, printed, err = call(capsys, "pope", samples, "--json")
    assert code == 0, err
    alone = json.loads(printed)
    assert alone["strategies"]["all"]["counts"] == {
        "true_yes": 1,
        "false_yes": 1,
        "true_no": 1,
        "false_no": 1,
        "unparsed_yes": 0,
        "unparsed_no": 0,
    }


def test_pope_samples_of_all_strategies_find_their_questions_by_number_and_text(tmp_path, capsys):
    samples = pope_file(tmp_path / "samples.jsonl")
    files = []
    for kind, asked in (("adversarial", ASKED[:2]), ("popular", ASKED[2:])):
        path = tmp_path / f"coco_pope_{kind}.json"
        questions = [
            {"question_id": int(number), "image": "1.png", "text": text, "label": label}
            for number, label, _, text in asked
        ]
        path.write_text("".join(json.dumps(question) + "\n" for question in questions))
        files += ["--questions", path]
    code, printed, err = call(capsys, "pope", samples, *files, "--json")
    assert code == 0, err
    strategies = json.loads(printed)["strategies"]
    assert {name: scores["counts"]["true_yes"] for name, scores in strategies.items()} == {
        "adversarial": 1,
        "popular": 0,
    }
    assert strategies["adversarial"]["counts"]["false_yes"] == strategies["popular"]["counts"]["true_no"] == 1
    broken = samples.read_text().replace("Is there a person", "Is there a zebra")
    samples.write_text(broken)
    code, _, err = call(capsys, "pope", samples, *files)
    assert code == 2 and "the answer to question 2 names no strategy" in err


def test_caption_samples_are_scored_by_chair(tmp_path, capsys):
    coco = make_coco_folder(tmp_path / "coco", images=3)
    answers = {"answer": ["A dog."], "pred": "A dog and a zebra."}
    records = [
        sample(0, "A dog and a zebra.", "['A dog.']", coco_Bleu_4={**answers, "image_id": 1, "id": 5}),
        sample(1, "A cat.", "x", mine={"file_name": "000000000002.jpg"}),
        sample(2, "A car.", "x") | {"doc": {"question_id": "COCO_val2014_000000000002.jpg"}},
    ]
    samples = tmp_path / "samples_coco_cap.jsonl"
    samples.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    code, printed, err = call(capsys, "chair", samples, "--coco", coco, "--json")
    assert code == 0, err
    scored = json.loads(printed)
    assert (scored["captions"], scored["mentions"], scored["hallucinated_mentions"]) == (3, 4, 1)


def test_samples_of_a_caption_task_without_an_image_say_so(tmp_path, capsys):
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps(sample(0, "A dog.", "x")) + "\n")
    code, _, err = call(capsys, "chair", samples, "--coco", make_coco_folder(tmp_path / "coco", images=1))
    assert code == 2 and f"{samples}: record 1 needs one of image_id, image, question_id" in err


def test_a_sample_without_an_answer_is_named(tmp_path, capsys):
    broken = sample(0, "Yes", "yes") | {"filtered_resps": [], "resps": [[None]]}
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(broken) + "\n")
    code, _, err = call(capsys, "pope", path)
    assert code == 2 and f"{path}: record 1 is a sample of lmms-eval without an answer" in err
    assert len(err.splitlines()) == 1


def test_other_records_stay_as_they_are():
    record = {"image_id": 1, "caption": "A dog.", "doc": "a text"}
    assert plain_record(record, "x") is record
