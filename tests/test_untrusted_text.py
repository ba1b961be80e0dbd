"""Words from files and models on their way to a terminal, a table or a message."""

import csv
import io
import json

import pytest
from run_records import careful, careless, write_run
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.untrusted.printed_text import csv_cell, markdown_text, one_line, printable, printable_json, shown

HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J\x9d0;t\x9c a\x00b\rc\u202ed \ud83d |<b>`[x](y)`"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;new title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1bPdevice\x1b\\string", "string"),
        ("\x1bcreset", "reset"),
        ("a\rb\x08c\x7fd", "abcd"),
        ("abc\u202edef\u2066", "abcdef"),
        ("one\ntwo\tthree", "one\ntwo\tthree"),
        ("Zwei Hunde, 两只狗, \U0001f468\u200d\U0001f469", "Zwei Hunde, 两只狗, \U0001f468\u200d\U0001f469"),
        ("half \ud83d", "half \ufffd"),
        ("\x1b", ""),
    ],
)
def test_a_terminal_gets_nothing_to_obey(text, expected):
    assert printable(text) == expected


def test_messages_are_one_short_line():
    assert one_line("a\n  b\tc\x1b[2J") == "a b c"
    cut = one_line("x" * 5000 + "the end")
    assert len(cut) < 1100 and cut.endswith("the end") and " ... " in cut


LONG = ("x" * 10**6, 10**5000, [["y" * 10**5] * 10**4], {"k" * 10**5: 1}, {1: {2: {3: {}}}})


@pytest.mark.parametrize("value", LONG, ids=["text", "number", "lists", "key", "nested"])
def test_long_input_is_shortened_in_messages(value):
    assert len(shown(value)) < 300


def test_json_for_a_terminal_is_the_same_json():
    value = {"a": HOSTILE + "两只狗"}
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value and "两只狗" in text
    assert printable(text) == text


@pytest.mark.parametrize(
    "value", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1", "-", "-cmd|' /C calc'!A0"]
)
def test_what_a_spreadsheet_would_compute_is_quoted(value):
    assert csv_cell(value) == f"'{value}"


@pytest.mark.parametrize("value", ["-1.5", "+3", "-1e-3", "var", "a=1", "pai:gain=0.4", "", -1.5, 3, None])
def test_numbers_and_words_stay(value):
    assert csv_cell(value) == value


def test_markdown_shows_what_was_given():
    assert markdown_text("a|b\nc") == "a\\|b c"
    assert markdown_text("a\\|b") == "a\\\\\\|b"
    assert markdown_text("<img src=x>&amp;") == "&lt;img src=x&gt;&amp;amp;"
    assert markdown_text("[x](http://y) `z`") == "\\[x\\](http://y) \\`z\\`"


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run whose method, model and data have names that are commands to something."""
    folder = tmp_path_factory.mktemp("hostile")
    coco = make_coco_folder(folder / "coco", images=3)
    write_run(folder / "run", coco, {"none": careful, "careless": careless})
    path = folder / "run" / "results.json"
    content = json.loads(path.read_text())
    for method, label in zip(content["methods"], ("=1+1", HOSTILE)):
        method["label"] = label
    content["baseline"] = "=1+1"
    content["model"]["name"] = f"$x^{{ {HOSTILE}"
    content["notes"] = [HOSTILE]
    path.write_text(json.dumps(content))
    return folder / "run"


def output(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("style", ["markdown", "csv", "json", "html"])
def test_tables_of_a_received_run(hostile_run, capsys, style):
    text = output(capsys, "table", hostile_run, "--format", style)
    assert printable(text) == text
    if style == "csv":
        labels = {row["method"] for row in csv.DictReader(io.StringIO(text))}
        assert "'=1+1" in labels and not any(label.startswith("=") for label in labels)
        assert all(float(row["value"]) == float(row["value"]) for row in csv.DictReader(io.StringIO(text)))
    if style == "markdown":
        header, *rows = [line for line in text.splitlines() if line.startswith("|")]
        assert {row.replace("\\|", "").count("|") for row in rows} == {header.count("|")}
    if style in ("markdown", "html"):
        assert "<b>" not in text


def test_the_terminal_and_plots_of_a_received_run(hostile_run, capsys, tmp_path):
    shown_text = output(capsys, "compare", hostile_run)
    assert printable(shown_text) == shown_text and "red" in shown_text
    assert printable(as_json := output(capsys, "compare", hostile_run, "--json")) == as_json
    assert len(output(capsys, "plot", hostile_run, "--out", tmp_path).splitlines()) == 3


def test_an_error_is_one_line_whatever_is_in_it(capsys, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({HOSTILE * 50: 1}))
    with pytest.raises(SystemExit) as ended:
        main(["pope", str(path), "--questions", str(path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error[:-1].isprintable() and len(error) < 1100
