"""The commands eval, compare, table, plot and report, with good and bad input."""

import json
from pathlib import Path

import pytest
from run_records import careful, careless, write_run
from small_coco import make_coco_folder

from vlm_guard.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def run(coco, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, coco, {"none": careless, "var": careful})
    return folder


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


QUICK = ("--device", "cpu", "--max-new-tokens", 8, "--resamples", 100, "--task", "chair")


def test_eval_prints_a_table_and_writes_everything(coco, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("methods: [none, var]\nbatch_size: 3\ncount: 2\n", encoding="utf-8")
    options = ("--config", config, "--count", 4, "--set", "var.sink_dimensions=1,2", "--data", f"coco:{coco}")
    code, out, err = call(capsys, "eval", *QUICK, *options, "--out", tmp_path / "run")
    assert code == 0, err
    assert "n = 4" in out and "CHAIR_i" in out and "− none" in out and "tokens/s" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["decoding"]["batch_size"] == 3
    assert (tmp_path / "run" / "var" / "samples.jsonl").read_text(encoding="utf-8").count("\n") == 4


def test_dry_run_shows_a_prompt_and_a_time_and_writes_nothing(coco, tmp_path, capsys):
    options = ("--data", f"coco:{coco}", "--method", "none", "--out", tmp_path / "run", "--dry-run")
    code, out, _ = call(capsys, "eval", *QUICK, *options)
    assert code == 0
    assert "USER: <image>" in out and "nothing was written" in out
    assert not (tmp_path / "run").exists()
    code, out, _ = call(capsys, "eval", *QUICK, *options, "--json")
    prediction = json.loads(out)
    assert prediction["tasks"]["chair"]["samples"] == 6
    assert prediction["predicted_seconds"] > 0


def test_another_template_is_used_and_named(coco, tmp_path, capsys):
    options = ("--data", f"coco:{coco}", "--method", "none", "--count", 1, "--out", tmp_path / "run", "--json")
    template = "A chat. USER: {image}\n{prompt} ASSISTANT:"
    code, out, err = call(capsys, "eval", *QUICK, *options, "--template", template)
    assert code == 0, err
    assert json.loads(out)["template"]["text"] == template


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "flickr:x"), "unknown data 'flickr:x'"),
        (("--data", "coco:/nowhere/at/all"), "/nowhere/at/all"),
        (("--data", "scenes:unheard-of"), "splits are"),
        (("--method", "vra"), "Did you mean"),
        (("--task", "nonsense"), "allowed: chair, pope"),
        (("--set", "var.move_fraction"), "METHOD.OPTION=VALUE"),
        (("--device", "cuda:77"), "cuda:77"),
        (("--dtype", "float8"), "allowed: auto, float32"),
        (("--count", "0"), "count"),
        (("--chair-mode", "regex"), "pattern, wordnet"),
        (("--parser", "guess", "--task", "pope"), "strict"),
        (("--model", "/nowhere/model"), "/nowhere/model"),
        (("--config", "/nowhere.yaml"), "no settings file"),
        (("--template", "no marks"), "{image}"),
        (("--image-list", "/nowhere.txt"), "no image list"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(coco, tmp_path, capsys, options, message):
    given = ("--data", f"coco:{coco}", "--method", "none", "--task", "chair", *options)
    code, out, err = call(capsys, "eval", "--device", "cpu", *given, "--out", tmp_path / "run")
    assert code == 2
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert out == ""


def test_a_folder_without_model_is_explained(coco, tmp_path, capsys):
    code, _, err = call(capsys, "eval", "--data", f"coco:{coco}", "--model", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert "no config.json" in err


def test_compare_table_plot_and_report(run, coco, tmp_path, capsys):
    code, out, _ = call(capsys, "compare", run)
    assert code == 0 and "-50.0" in out and "say little" in out
    code, out, _ = call(capsys, "compare", run, "--json", "--baseline", "var")
    assert code == 0 and json.loads(out)["baseline"] == "var"
    code, out, _ = call(capsys, "table", run, "--format", "csv")
    assert code == 0 and out.startswith("method,metric,value")
    code, out, _ = call(capsys, "table", run, "--format", "html", "-o", tmp_path / "table.html")
    assert code == 0 and out == "" and (tmp_path / "table.html").read_text(encoding="utf-8").startswith("<table>")
    pytest.importorskip("matplotlib")
    code, out, _ = call(capsys, "plot", run, "-o", tmp_path / "plots")
    assert code == 0 and (tmp_path / "plots" / "pope.png").stat().st_size > 10_000
    code, out, _ = call(capsys, "report", run, "--images", coco, "-o", tmp_path / "page.html")
    assert code == 0 and (tmp_path / "page.html").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "/nowhere"), "no results.json"),
        (("table", "RUN", "--format", "pdf"), "must be one of markdown"),
        (("compare", "RUN", "--baseline", "pai"), "no method 'pai'"),
        (("plot", "RUN", "--format", "bmp"), "png, svg or pdf"),
        (("report", "RUN", "--images", "/nowhere"), "no folder"),
    ],
)
def test_wrong_use_of_the_reading_commands(run, capsys, arguments, message):
    code, _, err = call(capsys, *(run if argument == "RUN" else argument for argument in arguments))
    assert code == 2
    assert message in err


def test_real_photographs_run_through(tmp_path, capsys):
    folder = Path(__file__).parents[3] / "shared" / "data" / "coco" / "tiny_coco"
    if not folder.is_dir():
        pytest.skip("no photographs here")
    options = ("--data", f"coco:{folder}", "--split", "val2017", "--count", 4, "--method", "none", "--json")
    code, out, err = call(capsys, "eval", *QUICK, *options, "--out", tmp_path / "run")
    assert code == 0, err
    assert json.loads(out)["data"]["name"] == "coco:tiny_coco val2017"
