"""Comparing runs: what may stand in one table and what may not, and the tables' formats."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_records import careful, careless, write_run
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.report.chosen_columns import chosen_columns, usual_columns
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.line_table import line_table
from vlm_guard.eval.report.page import build_report
from vlm_guard.eval.report.reading_notes import reading_notes
from vlm_guard.eval.report.run_differences import difference_notes
from vlm_guard.eval.report.tables import render_table
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.tasks.pope.task import PopeTask


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small", images=12)


@pytest.fixture(scope="module")
def run(coco, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    write_run(folder, coco, {"none": careless, "var": careful})
    return folder


def test_differences_are_those_of_the_made_up_answers(run):
    results = compare_runs([run]).results
    plain, better = results.methods
    assert plain.estimates["chair_i"].value == pytest.approx(0.5)
    assert better.estimates["chair_i"].value == 0
    difference = better.difference_to_baseline["chair_i"]
    assert (difference.value, difference.low, difference.high) == (-0.5, -0.5, -0.5)
    assert difference.verdict == "better"
    assert better.difference_to_baseline["recall"].verdict == "unclear"
    assert better.difference_to_baseline["mean_words"].verdict == "changed"
    assert plain.estimates["pope.mean.unparsed"].value > 0
    assert better.estimates["pope.mean.yes_ratio"].value == 1


def test_another_baseline_comes_first_and_turns_the_signs(run):
    results = compare_runs([run], baseline="var").results
    assert [method.label for method in results.methods] == ["var", "none"]
    assert results.methods[1].difference_to_baseline["chair_i"].value == 0.5
    with pytest.raises(ValueError, match=r"no method 'pai'.*none, var"):
        compare_runs([run], baseline="pai")


def test_two_runs_on_the_same_images_stand_together(run, coco, tmp_path):
    write_run(tmp_path / "second", coco, {"none": careless, "pai": careful})
    results = compare_runs([run, tmp_path / "second"]).results
    assert [method.label for method in results.methods] == ["first/none", "var", "second/none", "pai"]
    assert results.methods[2].difference_to_baseline["chair_i"].value == 0
    with pytest.raises(ValueError, match="same run"):
        compare_runs([run, run])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "What is this?"}, "tasks.chair.prompt"),
        ({"count": 6}, "data.images"),
        ({"template": {"source": "given", "sha256": "1" * 64}}, "template.source"),
        (
            {"decoding": {"do_sample": True, "num_beams": 1, "batch_size": 4, "seed": 0, "checkpoint": {}}},
            "decoding.do_sample",
        ),
    ],
)
def test_other_variants_prompts_and_subsets_are_refused(run, coco, tmp_path, changes, field):
    write_run(tmp_path / "second", coco, {"none": careless}, **changes)
    with pytest.raises(ValueError, match=rf"cannot be compared: {field.replace('.', '[.]')} is "):
        compare_runs([run, tmp_path / "second"])


def test_other_text_modes_are_refused(run, coco, tmp_path):
    write_run(tmp_path / "second", coco, {"pai": careless})
    path = tmp_path / "second" / "results.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"text_mode": "pattern"', '"text_mode": "wordnet"'))
    with pytest.raises(ValueError, match="text_mode is 'pattern' in one and 'wordnet' in the other"):
        compare_runs([run, tmp_path / "second"])


def test_a_part_that_one_run_lacks_is_one_note_and_long_values_are_cut():
    versions = {"torch": "2.13.0", "numpy": "2.4.6"}
    facts = {"facts": {"heads": {"value": [1, 2, 3], "source": "calibrated"}, "direction": {"value": "x" * 5000}}}
    first = {"profile": facts, "model": {"name": "a"}, "environment": {"versions": versions}, "notes": ["n"]}
    second = {"profile": None, "model": {"name": "b" * 99, "engine": "vllm"}, "environment": {"versions": {"os": "x"}}}
    found = difference_notes(first, second, ("here", "served"), ("profile", "model", "environment"))
    assert found == [
        f"served: model.name is '{'b' * 55} ..., not 'a'",
        "served: model.engine ('vllm'), which here has not",
        "served: environment.versions.os ('x'), which here has not",
        "served: no profile, which here has",
        "served: no torch, numpy of environment.versions, which here has",
    ]
    assert difference_notes(second, second, ("a", "b"), ("profile",)) == []


def test_what_changes_speed_or_rounding_only_is_noted(run, coco, tmp_path):
    decoding = {"do_sample": False, "num_beams": 1, "batch_size": 8, "seed": 0, "checkpoint": {}}
    write_run(tmp_path / "second", coco, {"pai": careless}, decoding=decoding)
    notes = compare_runs([run, tmp_path / "second"]).notes
    assert notes == ("second: decoding.batch_size is 8, not 4",)


def test_images_that_one_method_skipped_do_not_count_in_its_difference(coco, tmp_path):
    write_run(tmp_path / "run", coco, {"none": careless, "var": careful}, skipped={"var": (1, 2)})
    comparison = compare_runs([tmp_path / "run"])
    assert comparison.results.methods[1].difference_to_baseline["chair_i"].images == 10
    assert "skipped different images (none 0, var 2)" in comparison.notes[0]


def test_results_of_another_major_version_are_refused(run, tmp_path):
    content = json.loads((run / "results.json").read_text(encoding="utf-8"))
    (tmp_path / "results.json").write_text(json.dumps({**content, "schema_version": "2.0"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"schema version 2\.0"):
        read_results(tmp_path)
    newer = {**content, "schema_version": "1.7", "something_new": 3}
    (tmp_path / "results.json").write_text(json.dumps(newer), encoding="utf-8")
    assert read_results(tmp_path).baseline == "none"
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="no valid JSON"):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        read_results(tmp_path / "nothing")


def test_csv_and_json_hold_every_metric_as_fractions(run):
    results = compare_runs([run]).results
    rows = json.loads(render_table(results, "json"))
    found = {(row["method"], row["metric"]): row for row in rows}
    assert found["var", "chair_i"]["difference_value"] == -0.5
    assert found["none", "chair_i"]["value"] == 0.5
    assert found["none", "chair_i"]["baseline"] is None
    read = list(csv.DictReader(io.StringIO(render_table(results, "csv"))))
    assert [(row["method"], row["metric"], float(row["value"])) for row in read] == [
        (row["method"], row["metric"], row["value"]) for row in rows
    ]


def test_markdown_has_one_row_per_method_and_says_what_it_is(run):
    lines = render_table(compare_runs([run]).results, "markdown").splitlines()
    width = lines[0].count("|")
    assert [line.count("|") for line in lines[1:4]] == [width] * 3
    assert "0.0 (-50.0 ▼, -50.0..-50.0)" in lines[3]
    assert "pattern mode" in lines[-1] and "12 images" in lines[-1] and "strict parser" in lines[-1]


def test_no_format_has_intervals_of_few_images(coco, tmp_path):
    write_run(tmp_path / "few", coco, {"none": careless, "var": careful}, count=4)
    comparison = compare_runs([tmp_path / "few"])
    for style in ("markdown", "latex", "html"):
        text = render_table(comparison.results, style)
        assert "no intervals for fewer than 10 images" in text and "50.0" in text
        assert ".." not in text and "▼" not in text and "bootstrap" not in text
    assert '"has_interval":true' not in build_report(comparison)
    assert '"low":' in render_table(comparison.results, "json")


def test_intervals_go_by_the_images_of_each_number(coco, tmp_path):
    write_run(tmp_path / "part", coco, {"none": careless, "var": careful}, skipped={"var": tuple(range(1, 7))})
    comparison = compare_runs([tmp_path / "part"])
    for style in ("markdown", "latex", "html"):
        text = render_table(comparison.results, style)
        assert "bootstrap" in text and "▼" not in text.partition("bootstrap")[0] and ".." not in text
    page = build_report(comparison)
    assert '"has_interval":true' in page and '"has_interval":false' in page


def test_beam_search_stands_beside_greedy_only_when_asked_and_says_so(run, coco, tmp_path):
    beams = {**read_results(run).decoding, "num_beams": 5}
    write_run(tmp_path / "beam", coco, {"opera": careful}, decoding=beams)
    with pytest.raises(ValueError, match=r"decoding\.num_beams is 1 in one and 5 .* --decoding-differs"):
        compare_runs([run, tmp_path / "beam"])
    results = compare_runs([run, tmp_path / "beam"], decoding_differs=True).results
    said = "decoding differs: greedy in first, 5 beams in beam"
    assert said in results.notes and [method.label for method in results.methods] == ["none", "var", "opera"]
    assert said in render_table(results, "markdown") and "; greedy" not in render_table(results, "markdown")
    write_run(tmp_path / "other", coco, {"pai": careful}, decoding=beams, prompt="What is there?")
    with pytest.raises(ValueError, match="prompt") as refused:
        compare_runs([run, tmp_path / "other"], decoding_differs=True)
    assert "--decoding-differs" not in str(refused.value)


def test_latex_has_the_numbers_of_markdown_and_is_escaped(run):
    results = compare_runs([run]).results
    odd = results.methods[1].model_copy(update={"label": "pai:gain=0.4_%&"})
    results = results.model_copy(update={"methods": [results.methods[0], odd]})
    text = render_table(results, "latex")
    table, comments = text.split("\\end{tabular}\n")
    assert all(line.startswith("% ") for line in comments.splitlines()) and "pattern mode" in comments
    assert not re.search(r"(?<!\\)[%&#_]", re.sub(r" & ", "", table))
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    cells = len(re.search(r"\{(lr+)\}", table)[1])
    assert [len(row.split(" & ")) for row in rows] == [cells] * 3
    assert rows[2].startswith(r"pai:gain=0.4\_\%\& & ")
    assert r"0.0 {\scriptsize ($-$50.0 $\downarrow$, $-$50.0..$-$50.0)}" in rows[2]
    numbers = re.findall(r"\d+\.\d", render_table(results, "markdown").splitlines()[3])
    assert re.findall(r"\d+\.\d", rows[2]) == numbers


def test_columns_are_chosen_by_name_in_every_format(run):
    compared = compare_runs([run])
    chosen = chosen_columns(compared.results, compared.records, ["chair.per_100_words", "recall", "seconds"])
    head = render_table(compared.results, "markdown", chosen).splitlines()[0]
    assert head.count("|") == 5 and "100 words" in head and head.endswith("| recall ↑ | seconds |")
    assert "100 words" in render_table(compared.results, "latex", chosen)
    assert render_table(compared.results, "html", chosen).count("<td>") == 6
    rows = json.loads(render_table(compared.results, "json", chosen[1::-1]))
    assert [(row["method"], row["metric"]) for row in rows] == [
        (method, metric) for method in ("none", "var") for metric in ("recall", "chair.per_100_words")
    ]
    with pytest.raises(ValueError, match="csv and json hold metrics, not seconds"):
        render_table(compared.results, "csv", chosen)
    with pytest.raises(ValueError, match=r"no column 'words'\. Did you mean 'mean_words'"):
        chosen_columns(compared.results, compared.records, ["words"])


def test_a_terminal_gets_a_line_for_each_method(run):
    results = compare_runs([run]).results
    columns = usual_columns(results)
    text = line_table(results, columns, 80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and lines[3] == ""
    assert lines[1].startswith("none ") and lines[2].startswith("var ") and "0.0 -50.0 ▼" in lines[2]
    said = " ".join(lines)
    left_out = re.search(r"Left out, since they do not fit 80 columns: (.*?)\. --columns", said)[1].split(", ")
    shown = [column.label for column in columns if column.name not in left_out]
    assert left_out and all(label in lines[0] for label in shown)
    assert "Left out" not in line_table(results, columns, 400)


def test_html_is_a_table_with_escaped_labels(coco, tmp_path):
    write_run(tmp_path / "run", coco, {"none": careless})
    results = read_results(tmp_path / "run")
    odd = results.model_copy(update={"methods": [results.methods[0].model_copy(update={"label": "<a&b>"})]})
    text = render_table(odd, "html")
    assert "&lt;a&amp;b&gt;" in text

    class Counter(HTMLParser):
        tags: list[str] = []

        def handle_starttag(self, tag, attributes):
            self.tags.append(tag)

    counter = Counter()
    counter.feed(text)
    assert counter.tags.count("tr") == 2
    with pytest.raises(ValueError, match="must be one of markdown"):
        render_table(results, "pdf")


def test_captions_that_name_nothing_are_no_chair_of_zero(coco, tmp_path, capsys):
    def broken(task, image_id, prompt):
        return "the the the" if task == "chair" else careless(task, image_id, prompt)

    def hushed(task, image_id, prompt):
        return broken(task, image_id, prompt) if image_id < 4 else careful(task, image_id, prompt)

    write_run(tmp_path, coco, {"none": careless, "broken": broken, "hushed": hushed})
    results = compare_runs([tmp_path]).results
    method = results.methods[1]
    assert method.estimates["chair_i"].value == 0 and method.estimate("chair_i") is None
    assert method.difference_to_baseline["chair_i"].verdict == "unclear"
    stored = json.loads(results.to_json())["methods"]
    assert stored[1]["estimates"]["chair_i"]["undefined"] and "undefined" not in stored[0]["estimates"]["chair_i"]
    assert stored[1]["chair"]["captions_without_mention"] == 12
    text = render_table(results, "markdown")
    row = next(line for line in text.splitlines() if line.startswith("| broken"))
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["-", "-"]
    assert "broken: 12 of 12 captions name nothing. hushed: 3 of 12 captions name nothing." in text
    assert "intervals of so few pictures (12 pictures) say little" in text
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path)])
    assert "note: broken: 12 of 12 captions name nothing" in capsys.readouterr().out
    assert '"broken: 12 of 12 captions name nothing"' in build_report(compare_runs([tmp_path]))


def test_what_numbers_do_not_show_is_said_below_them(coco, tmp_path):
    write_run(tmp_path, coco, {"none": careless, "var": careless, "pai": careful})
    results = compare_runs([tmp_path]).results
    count = results.methods[1].unchanged["answers"]
    notes = reading_notes(results)
    assert f"var: all {count} answers equal the plain model's" in notes
    assert not any(note.startswith("pai") for note in notes) and results.methods[2].unchanged["same"] < count
    (first, second, *_) = results.methods
    idle = second.model_copy(update={"label": "auto", "methods": [{"method": "none", "options": {}}]})
    notes = reading_notes(results.model_copy(update={"methods": [first, idle]}))
    assert f"auto: all {count} answers equal the plain model's: on this model it comes to no method at all" in notes


def test_pictures_without_questions_are_counted():
    said = "3 of 20 pictures have too few objects (or too few absent ones) for POPE's questions"
    assert PopeTask.notes({"origin": "built, 6 per image and strategy, seed 0"}, {}, 17, 20) == [said]
    assert PopeTask.notes({"origin": "question files"}, {}, 17, 20) == []
