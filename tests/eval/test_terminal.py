"""What the terminal shows: tables at 80 columns without a broken word, and a line a minute where it is no terminal."""

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from run_records import careful, careless, write_run
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.console import columns_of, print_results
from vlm_guard.eval.report.fitting import fitting_tables, folded_label
from vlm_guard.eval.report.head_words import HEAD_WORDS, head_sentences
from vlm_guard.eval.report.progress import ProgressBar, span

LONG = "vcd:strength=0.5,plausibility=0.7,noise_step=999"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    coco = make_coco_folder(folder / "coco", images=12)  # with fewer there are no intervals
    write_run(folder / "run", coco, {"none": careless, "vcd": careful, "pai+var": careful})
    return folder / "run"


def printed_at(width: int, draw) -> list[str]:
    output = io.StringIO()
    draw(Console(file=output, width=width))
    return output.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_results_fit_and_every_head_is_whole(run, width, capsys):
    from vlm_guard.eval.run.results import read_results

    found = read_results(run)
    labels = ("none", LONG, "pai:gain=0.4+var")
    named = [method.model_copy(update={"label": label}) for method, label in zip(found.methods, labels, strict=True)]
    results = found.model_copy(update={"methods": named})
    lines = printed_at(width, lambda console: print_results(console, results))
    assert max(map(len, lines)) <= width
    heads = " ".join(line for line in lines if line.startswith(("n = ", "method")))
    for columns in columns_of(results).values():
        assert all(column.label in heads for column in columns)
    assert all(head in heads for head in ("seconds", "tokens/s", "peak MiB", "answered", "skipped", "cut off"))
    tables = sum(line.startswith(("n = ", "method")) for line in lines)
    assert sum(line.startswith("vcd:strength=0.5,") for line in lines) == tables, "every table names every method"
    assert (tables == 3) == (width >= 120), "one for each task and the costs where they fit"


def test_short_heads_are_said_below_and_in_the_glossary(run):
    results = compare_runs([run]).results
    said = " ".join(" ".join(printed_at(200, lambda console: print_results(console, results))).split())
    glossary = (Path(__file__).resolve().parents[2] / "docs/glossary.md").read_text(encoding="utf-8")
    names = {name for names in re.findall(r"^\| \*\*(.*?)\*\*", glossary, re.MULTILINE) for name in names.split(", ")}
    for head, meaning in HEAD_WORDS.items():
        assert f'"{head}": {meaning}.' in said and head in names
    assert "F1 − control" in names and '"F1 − control"' not in head_sentences(["F1 − control ↑"])


def test_compare_and_pope_print_at_most_80_columns(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["compare", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert "CHAIR_i ↓" in "\n".join(lines) and max(map(len, lines)) <= 80
    (tmp_path / "pope_adversarial.jsonl").write_text(
        '{"question_id": 1, "image": "1.png", "text": "Is it?", "label": "yes"}\n'
    )
    (tmp_path / "answers.jsonl").write_text('{"question_id": 1, "text": "Yes"}\n')
    with pytest.raises(SystemExit):
        main(["pope", str(tmp_path / "answers.jsonl"), "--questions", str(tmp_path / "pope_adversarial.jsonl")])
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "accuracy" in line)
    row = next(line for line in lines if line.startswith("adversarial"))
    assert len(head) == len(row) <= 80
    ends = [head.index(word) + len(word) for word in ("accuracy", "recall", "yes ratio", "unread", "questions")]
    assert all(row[end - 1].isdigit() for end in ends), "numbers stand below the ends of their heads"


def test_a_table_is_cut_between_columns_and_repeats_the_first():
    head = ["method", "one", "two", "three"]
    rows = [[Text(cell) for cell in ("none", "1.0", "22.0", "333.0")]]
    assert len(fitting_tables(head, rows, 24)) == 1
    tables = fitting_tables(head, rows, 16)
    assert [[column.header.plain for column in table.columns] for table in tables] == [
        ["method", "one", "two"],
        ["method", "three"],
    ]
    assert len(fitting_tables(head, rows, 3)) == 3, "a table of one column is made however narrow the terminal"


def test_labels_are_folded_behind_their_signs():
    assert folded_label("pai:gain=0.4+var", 80) == "pai:gain=0.4+var"
    assert folded_label(LONG, 80).splitlines() == ["vcd:strength=0.5,", "  plausibility=0.7,", "  noise_step=999"]
    assert "".join(line.strip() for line in folded_label(LONG, 40).splitlines()) == LONG


def test_a_line_from_time_to_time_where_the_output_is_no_terminal():
    output = io.StringIO()
    progress = ProgressBar(Console(file=output, width=80), between=0.02)
    progress.start(400, 100)
    deadline = time.monotonic() + 20
    while output.getvalue().count("\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    progress.advance(30, "none")
    progress.stop()
    lines = output.getvalue().splitlines()
    assert len(lines) >= 2 and set(lines) == {"100 of 400 answers (25 %) after 0 s"}, "also before the first batch ends"
    time.sleep(0.1)
    assert output.getvalue().splitlines() == lines, "nothing is said after the end"
    assert progress.line(75) == "130 of 400 answers (32 %) after 75 s, about 11 min left"
    progress.advance(500, "none")
    assert progress.line(1000) == "400 of 400 answers (100 %) after 17 min, about 0 s left"
    assert progress.interrupted_text(Path("runs/x")) == (
        "interrupted: 400 of 400 answers are kept (runs/x); start the same command again to go on from there"
    )


def test_a_terminal_gets_the_bar_and_no_lines():
    output = io.StringIO()
    progress = ProgressBar(Console(file=output, width=80, force_terminal=True), between=0.001)
    progress.start(4, 0)
    progress.advance(2, "none")
    time.sleep(0.05)
    progress.stop()
    assert "answers (" not in output.getvalue() and progress.done == 2


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (89.9, "90 s"), (700, "12 min"), (12000, "3 h 20 min")])
def test_time_spans_are_for_people(seconds, text):
    assert span(seconds) == text
