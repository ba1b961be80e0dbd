"""Records survive being killed at any moment, and a long run resumes fast."""

import json

import pytest

from vlm_guard.eval.run.records import SampleLog, read_records, write_records


def record(number: int) -> dict:
    return {"sample": f"chair/{number}", "task": "chair", "text": "A dog \U0001f436\u2028 and more.\n" * (number % 3)}


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_line_torn_anywhere_is_dropped_and_the_file_goes_on(tmp_path, kept):
    path = tmp_path / "samples.jsonl"
    with SampleLog(path) as log:
        log.append([record(1), record(2)])
    whole = path.read_bytes()
    torn = json.dumps(record(3)).encode()[:kept]
    path.write_bytes(whole + torn)
    assert list(read_records(path)[0]) == ["chair/1", "chair/2"]
    with SampleLog(path) as log:
        assert path.read_bytes() == whole
        log.append([record(3)])
    assert list(read_records(path)[0].values()) == [record(1), record(2), record(3)]


def test_a_file_that_is_only_a_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"sample": ' + b"x" * 200_000)  # longer than one read of the search for the last line's end
    SampleLog(path).close()
    assert path.read_bytes() == b""


def test_a_damaged_line_inside_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "samples.jsonl"
    write_records(path, [record(1), record(2)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0][:10] + b"\n" + lines[1])
    with pytest.raises(ValueError, match=r"samples.jsonl line 1 is damaged"):
        read_records(path)


def test_the_later_record_of_a_sample_counts(tmp_path):
    path = tmp_path / "samples.jsonl"
    write_records(path, [record(1), {**record(1), "text": "new"}])
    assert read_records(path)[0]["chair/1"]["text"] == "new"


def test_lone_surrogates_of_a_broken_tokenizer_are_kept_as_json(tmp_path):
    path = tmp_path / "samples.jsonl"
    with SampleLog(path) as log:
        log.append([{"sample": "a", "text": "\ud83d"}])
    assert read_records(path)[0]["a"]["text"] == "\ud83d"


@pytest.mark.slow
def test_a_hundred_thousand_records_are_read(tmp_path):
    """Reading that is not linear would not come to an end here."""
    path = tmp_path / "samples.jsonl"
    line = json.dumps({"sample": "chair/%06d", "task": "chair", "text": "word " * 60, "score": {"mentions": [{}] * 5}})
    path.write_text("".join(line % number + "\n" for number in range(100_000)), encoding="utf-8")
    records, _ = read_records(path)
    SampleLog(path).close()
    assert len(records) == 100_000
