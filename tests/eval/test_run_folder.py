"""The folder of a run: one run at a time, nothing lost without a word, methods of earlier runs kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.tables import render_table
from vlm_guard.eval.run.lock import LOCK_FILE, locked
from vlm_guard.eval.run.records import SampleLog, format_line, parse_line, read_records, scan_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def notes_of(results) -> list[str]:
    """What is said about the run itself; that the model has never seen such pictures holds in every test here."""
    return [note for note in results.notes if "drawn things" not in note]


HOLD = """
import sys, time
from pathlib import Path
from vlm_guard.eval.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small")


def settings(coco: Path, **changes) -> RunSettings:
    values = {"data": f"coco:{coco}", "device": "cpu", "methods": ["none"], "tasks": ["chair"], "resamples": 100}
    return RunSettings(**{**values, "max_new_tokens": 6, "batch_size": 3, **changes})


@pytest.fixture
def finished(coco, tmp_path) -> Path:
    evaluate(settings(coco), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path/run`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_taken_over(coco, holder, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["eval", "--data", f"coco:{coco}", "--device", "cpu", "--task", "chair", "--method", "none"]
    command += ["--max-new-tokens", "4", "--count", "1", "--resamples", "100", "--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"is being worked on by another run (process {holder.pid} on " in error
    assert "another --out" in error and len(error.splitlines()) == 1
    assert sorted(path.name for path in out.iterdir()) == [LOCK_FILE], "the refused run left something behind"
    holder.kill()
    holder.wait()
    assert (out / LOCK_FILE).exists(), "a killed process leaves its file"
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    assert not (out / LOCK_FILE).exists() and (out / "results.json").exists()


def test_two_runs_in_one_process_do_not_share_a_folder_either(tmp_path):
    out = tmp_path / "deep" / "run"
    with locked(out), pytest.raises(ValueError, match=f"process {os.getpid()} on"), locked(out):
        raise AssertionError
    assert not (tmp_path / "deep").exists(), "a folder that was made for the lock alone stays behind"
    with locked(out):
        (out / "results.json").write_text("{}", encoding="utf-8")
    assert [path.name for path in out.iterdir()] == ["results.json"]


def test_every_line_carries_a_checksum_and_any_change_is_found(tmp_path):
    record = {"sample": "chair/1", "text": "A dög \U0001f436\u2028.", "tokens": 12}
    line = format_line(record)
    assert parse_line(line[:-1]) == record
    for place in range(len(line) - 1):
        changed = bytearray(line[:-1])
        changed[place] ^= 1
        try:
            read = parse_line(bytes(changed))
        except ValueError:
            continue
        # A change of the checksum's own name leaves a line of an earlier version: the record itself is whole.
        assert {name: read[name] for name in record} == record
    old = tmp_path / "samples.jsonl"
    old.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert read_records(old)[0] == {"chair/1": record}
    with SampleLog(old) as log:
        log.append([{"sample": "chair/2"}])
    assert list(read_records(old)[0]) == ["chair/1", "chair/2"]


@pytest.mark.parametrize("damage", [b"A", b"\r", b"\x00", b"\xff"])
def test_a_changed_line_is_named_and_its_sample_asked_again(coco, finished, damage):
    samples = finished / "none" / "samples.jsonl"
    before, lines = read_records(samples)[0], samples.read_bytes().split(b"\n")
    place = lines[1].index(b'"text": "') + 10
    lines[1] = lines[1][:place] + damage + lines[1][place + 1 :]
    samples.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"samples\.jsonl line 2 is damaged .*vlm-guard eval"):
        compare_runs([finished])
    with pytest.warns(UserWarning, match=r"none/samples\.jsonl line 2 is damaged"):
        results = evaluate(settings(coco), finished)
    assert results.notes[0] == "1 damaged lines were found in the records of none and taken out"
    assert results.shortfalls() == []
    after = read_records(samples)[0]
    assert {key: record["text"] for key, record in after.items()} == {
        key: record["text"] for key, record in before.items()
    }
    changed = [key for key in before if after[key]["seconds"] != before[key]["seconds"]]
    assert changed == ["chair/2"], "whole records are kept"


def test_lost_records_are_reported_and_asked_again(coco, tmp_path, capsys):
    out = tmp_path / "run"
    both = {"methods": ["none", "pai"], "tasks": ["chair", "pope"], "pope": {"strategies": ["random"]}}
    assert notes_of(evaluate(settings(coco, **both), out)) == []
    samples = out / "pai" / "samples.jsonl"
    lines = samples.read_bytes().splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines) if b'"task": "pope"' in line or number % 3 == 0]
    captions = sum(b'"task": "chair"' in line for line in kept)
    samples.write_bytes(b"".join(kept))
    sentence = f"incomplete: pai has records of {captions} of 6 samples of chair"
    assert captions < 6
    results = compare_runs([out]).results
    assert results.notes[0].startswith(sentence) and len(notes_of(results)) == 1
    assert "pai (incomplete)" in render_table(results, "markdown")
    assert "I" + sentence[1:] in render_table(results, "html")
    rows = json.loads(render_table(results, "json"))
    assert {(row["method"], row["complete"]) for row in rows} == {("none", True), ("pai", False)}
    with pytest.raises(SystemExit):
        main(["compare", str(out)])
    assert sentence in capsys.readouterr().out
    assert notes_of(evaluate(settings(coco, **both), out)) == []


def test_a_run_that_ends_incomplete_says_so_and_exits_with_one(coco, tmp_path, capsys, monkeypatch):
    from vlm_guard.eval.run import resume

    scan = resume.scan_records

    def losing(path):
        file = scan(path)
        file.records = {key: record for key, record in file.records.items() if key != "chair/2"}
        return file

    monkeypatch.setattr(resume, "scan_records", losing)
    command = ["eval", "--data", f"coco:{coco}", "--device", "cpu", "--task", "chair", "--method", "none"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--max-new-tokens", "4", "--count", "3", "--resamples", "100", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 1
    assert "none has records of 2 of 3 samples of chair" in capsys.readouterr().out
    assert read_results(tmp_path / "run").methods[0].planned == {"chair": 3}


def test_results_without_a_plan_are_whole_as_they_are(finished):
    path = finished / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["methods"][0]["planned"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_results(finished).shortfalls() == []
    assert notes_of(compare_runs([finished]).results) == []


def test_second_records_of_a_sample_are_gone_when_the_run_ends(coco, finished):
    samples = finished / "none" / "samples.jsonl"
    lines = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(b"".join([lines[0], *lines, lines[3]]))
    evaluate(settings(coco), finished)
    assert scan_records(samples).lines == 6
    assert samples.read_bytes() == b"".join(lines)


def test_another_method_in_the_same_folder_leaves_the_first_where_it_is(coco, finished):
    results = evaluate(settings(coco, methods=["pai"]), finished)
    assert [method.label for method in results.methods] == ["none", "pai"]
    assert results.baseline == "none" and results.methods[1].difference_to_baseline
    assert notes_of(results) == [
        "none: kept from an earlier run in this folder, so times and memory were not measured in turn with those of "
        "the other methods"
    ]
    third = evaluate(settings(coco, methods=["none", "pai:gain=0.4"]), finished)
    assert [method.label for method in third.methods] == ["none", "pai:gain=0.4", "pai"]
    assert compare_runs([finished]).results.shortfalls() == []


def test_a_method_of_an_earlier_run_that_was_killed_is_kept_as_incomplete(coco, finished):
    (finished / "results.json").unlink()
    samples = finished / "none" / "samples.jsonl"
    samples.write_bytes(b"".join(samples.read_bytes().splitlines(keepends=True)[:2]))
    results = evaluate(settings(coco, methods=["pai"]), finished)
    assert [method.shown_label for method in results.methods] == ["none (incomplete)", "pai"]
    assert results.notes[0].startswith("incomplete: none has records of 2 of 6 samples of chair")


def test_methods_with_other_settings_are_not_put_beside_each_other(coco, finished):
    before = (finished / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"results of none with other settings: tasks\.chair\.prompt was .* --out"):
        evaluate(settings(coco, methods=["pai"], prompt="What is this?"), finished)
    assert (finished / "results.json").read_bytes() == before
    assert [path.name for path in finished.iterdir() if path.is_dir()] == ["none"]
