"""The files that lmms-eval writes with --log_samples, read by `chair` and `pope`. Made up in its layout (0.7)."""

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


def sample(number: int, doc: dict, answer: str) -> dict:
    return {
        "doc_id": number,
        "doc": doc,
        "target": doc.get("answer"),
        "arguments": ["Is it?\nAnswer the question using a single word or phrase.", {"max_new_tokens": 128}],
        "resps": [[answer]],
        "filtered_resps": [answer],
        "token_counts": [{"output_tokens": 1}],
        "doc_hash": "0" * 64,
        "pope_accuracy": {"question_id": doc.get("question_id"), "score": 1.0},
    }


def pope_file(path: Path) -> Path:
    asked = [
        ("1", "yes", "adversarial", "Yes"),
        ("2", "no", "adversarial", "Yes."),
        ("1", "yes", "popular", "no"),
        ("2", "no", "popular", "No"),
    ]
    records = [
        sample(
            place,
            {"id": str(place), "question_id": number, "question": "Is there a dog?", "answer": label, "category": kind},
            answer,
        )
        for place, (number, label, kind, answer) in enumerate(asked)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_pope_samples_are_scored_with_their_own_labels_or_the_question_files(tmp_path, capsys):
    samples = pope_file(tmp_path / "20261130_samples_pope.jsonl")
    code, printed, err = call(capsys, "pope", samples, "--json")
    assert code == 0, err
    alone = json.loads(printed)
    assert {name: scores["accuracy"] for name, scores in alone["strategies"].items()} == {
        "adversarial": 0.5,
        "popular": 0.5,
    }
    assert alone["strategies"]["adversarial"]["counts"]["false_yes"] == 1
    files = []
    for kind in ("adversarial", "popular"):
        questions = [
            {"question_id": number, "image": "1.png", "text": "Is there a dog?", "label": label}
            for number, label in ((1, "yes"), (2, "no"))
        ]
        path = tmp_path / f"coco_pope_{kind}.json"
        path.write_text("".join(json.dumps(question) + "\n" for question in questions))
        files += ["--questions", path]
    code, printed, err = call(capsys, "pope", samples, *files, "--json")
    assert code == 0, err
    assert json.loads(printed) == alone


def test_caption_samples_are_scored_by_chair(tmp_path, capsys):
    coco = make_coco_folder(tmp_path / "coco", images=3)
    records = [
        sample(0, {"question_id": "COCO_val2014_000000000001.jpg", "answer": ["A dog."]}, "A dog and a zebra."),
        sample(1, {"file_name": "000000000002.jpg", "question": "Describe it."}, "A cat."),
    ]
    samples = tmp_path / "samples_coco_cap.jsonl"
    samples.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    code, printed, err = call(capsys, "chair", samples, "--coco", coco, "--json")
    assert code == 0, err
    scored = json.loads(printed)
    assert (scored["captions"], scored["mentions"], scored["hallucinated_mentions"]) == (2, 3, 1)


def test_a_sample_without_an_answer_is_named(tmp_path, capsys):
    broken = sample(0, {"question_id": "1", "answer": "yes"}, "Yes") | {"filtered_resps": [], "resps": [[None]]}
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(broken) + "\n")
    code, _, err = call(capsys, "pope", path)
    assert code == 2 and f"{path}: record 1 is a sample of lmms-eval without an answer" in err
    assert len(err.splitlines()) == 1


def test_other_records_stay_as_they_are():
    record = {"image_id": 1, "caption": "A dog.", "doc": "a text"}
    assert plain_record(record, "x") is record
