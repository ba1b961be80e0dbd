"""JSON that strangers wrote: the right value, or one line that names the file and the record."""

import gzip
import json

import pytest

from vlm_guard.untrusted import json_files
from vlm_guard.untrusted.json_files import as_whole_number, parse_json, read_json, read_records, whole_number


@pytest.mark.parametrize("value", [139, 139.0, "139", "139.0", " 139 ", "+139", "000139"])
def test_what_is_a_whole_number_counts_as_it(value):
    assert whole_number(value, "image_id", "a.json: record 1") == 139


@pytest.mark.parametrize(
    "value", [True, None, 1.5, "1.5", "x", "", "١٢", "1e3", 2**70, "9" * 30, float("nan"), 1e300, [], {}]
)
def test_what_is_none_is_refused_with_file_and_record(value):
    assert as_whole_number(value) is None
    with pytest.raises(ValueError, match=r"a\.json: record 7: 'image_id' is .*whole number") as raised:
        whole_number(value, "image_id", "a.json: record 7")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n{"a": 2}\n',
        '{"a": 1}{"a": 2}',
        '{"a": 1} \r\n\r\n{"a": 2}',
        '{\n "a": 1\n}\n{\n "a": 2\n}',
        '[{"a": 1}, {"a": 2}]',
        '[{"a": 1}]\n[{"a": 2}]',
        '\ufeff[{"a": 1}][{"a": 2}]',
    ],
)
def test_records_may_stand_in_lines_in_lists_or_one_after_the_other(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode())
    assert [record for _, record in read_records(path)] == [{"a": 1}, {"a": 2}]
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert [record for _, record in read_records(packed)] == [{"a": 1}, {"a": 2}]


def test_records_have_the_number_of_their_line_or_of_their_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [number for number, _ in read_records(path)] == [2, 4]
    path.write_text('[{"a": 1}, {"a": 2}]\n[{"a": 3}]')
    assert [number for number, _ in read_records(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 400 + ".5}", "too large"),
        ('{"a": ' + "9" * 5000 + "}", "thousands of digits"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("", "it is empty"),
        ('{"a": 1}}', "Extra data"),
    ],
)
def test_what_is_no_json_is_said_in_one_line(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as raised:
        read_json(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_large_exponents_in_text_are_no_numbers():
    assert parse_json('{"a": "1e999", "b": 1e300}', "a") == {"a": "1e999", "b": 1e300}


def test_keys_can_be_left_out_at_every_depth():
    assert parse_json('{"a": 1, "b": [{"a": 2, "c": 3}]}', "a", drop=("a",)) == {"b": [{"c": 3}]}


def test_an_archive_cannot_unpack_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_TEXT_BYTES", 1000)
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(ValueError, match="holds more than"):
        read_json(path)


def test_a_small_archive_cannot_fill_the_memory(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b" " * 2**27))
    assert path.stat().st_size < 2**18
    with pytest.raises(ValueError, match="holds more than 64 MiB"):
        read_json(path)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_that_could_not_be_written_again_is_refused(tmp_path, opening, closing):
    inner = "0"
    assert parse_json(opening * 99 + inner + closing * 99, "a") is not None
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(opening * 101 + inner + closing * 101, "a")
    path = tmp_path / "a.jsonl"
    path.write_text('{"b": 1}\n{"a": ' + opening * 101 + inner + closing * 101 + "}\n")
    with pytest.raises(ValueError, match=r"line 2 .*nested too deeply"):
        list(read_records(path))


def test_a_record_that_breaks_off_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n" + '{"a": ' + "\n")
    with pytest.raises(ValueError, match="line 2 is no valid JSON"):
        list(read_records(path))
