"""Tasks as one finds and uses them: the listing, settings, data that fits or is refused, runs of the built-in ones."""

import json

import numpy as np
import pytest
from task_sources import make_sources

from vlm_guard.cli import main
from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.page import build_report
from vlm_guard.eval.report.tables import render_table
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.settings import RunSettings, read_settings
from vlm_guard.eval.run.setup import open_data
from vlm_guard.eval.tasks import Task, register_task
from vlm_guard.eval.tasks.shared.judging import JudgedTask
from vlm_guard.eval.tasks.shared.multiple_choice import read_choices
from vlm_guard.eval.tasks.shared.registry import task_class, task_files, task_names
from vlm_guard.eval.tasks.shared.settings import settings_with_flags
from vlm_guard.eval.tasks.shared.table import described_tasks

pytestmark = pytest.mark.usefixtures("one_thread")


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


@pytest.fixture
def sources(tmp_path, monkeypatch) -> dict[str, str]:
    """Small data for every task, by the task's name."""
    monkeypatch.setenv("VLM_GUARD_CACHE", str(tmp_path / "cache"))
    return make_sources(tmp_path)


OPTIONS = ("--device", "cpu", "--method", "none", "--method", "pai", "--resamples", "100", "--count", "3")


@pytest.mark.parametrize("task", sorted(task_files()))
def test_every_task_runs_from_the_command_line_to_tables_plots_and_page(task, sources, tmp_path, capsys):
    out = tmp_path / "run"
    limit = ("--set", f"{task}.max_new_tokens=8")
    if task == "openchair":
        limit += ("--set", f"openchair.concreteness={tmp_path / 'words.tsv'}")
    command = ("eval", "--task", task, "--data", sources[task], *OPTIONS, *limit, "--out", out)
    code, printed, err = call(capsys, *command)
    assert code == 0, err
    assert all(column.split()[0] in printed for column in (task_class(task).columns[0].label, "tokens/s"))
    results = read_results(out)
    assert list(results.tasks) == [task] and results.tasks[task]["max_new_tokens"] == 8
    assert all("drawn things" in note for note in results.notes) and results.data["images"] == 3
    for method in results.methods:
        assert method.samples[task].answered == method.planned[task] > 0
        shown = 1 if issubclass(task_class(task), JudgedTask) else 2  # the others come with a judge's verdicts
        assert set(method.estimates) >= {column.metric for column in task_class(task).columns[:shown]}
        assert method.model_dump()[task], "the task's own summary"
    assert results.methods[1].difference_to_baseline
    assert compare_runs([out]).results.methods[1].estimates == results.methods[1].estimates
    assert task_class(task).columns[0].label in render_table(results, "markdown")
    page = build_report(compare_runs([out]), limit=2)
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["metrics"][0]["group"] == task_class(task).table_title
    assert all(item["captions"] or item["questions"] for item in data["items"])
    before = (out / "none" / "samples.jsonl").read_bytes()
    assert call(capsys, *command)[0] == 0 and (out / "none" / "samples.jsonl").read_bytes() == before
    pytest.importorskip("matplotlib")
    plots = task_class(task).plots()
    code, _, err = call(capsys, "plot", out, "-o", tmp_path / "plots")
    assert (code == 0) == bool(plots), err
    assert plots or "has no plot" in err
    assert {path.stem for path in (tmp_path / "plots").glob("*")} == set(plots)


@pytest.mark.parametrize("task", sorted(task_files()))
def test_data_that_does_not_fit_is_refused_with_what_is_needed(task, sources, tmp_path, capsys):
    for data in {data for data in sources.values() if data.partition(":")[0] not in task_class(task).data_kinds}:
        code, _, err = call(capsys, "eval", "--task", task, "--data", data, *OPTIONS, "--out", tmp_path / "run")
        assert code == 2 and err.startswith(f"error: the task {task} cannot be asked about --data {data}; it needs ")
        assert task_class(task).data_help in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("amber", ("--data", "amber:/nowhere"), "--data amber:/nowhere: there is no such folder; it must hold AMBER's"),
        ("amber", ("--data", "amber:MME"), "is no AMBER release: it has none of annotations.json"),
        ("amber", ("--image-list", "x.txt"), "--image-list is for MSCOCO folders and scenes"),
        ("amber", ("--split", "val"), "--split is for MSCOCO folders"),
        ("amber", ("--set", "amber.parser=guess"), "amber.parser: Input should be 'exact' or 'strict'"),
        ("mme", ("--set", "mme.subtasks=existence,landmark"), "no question files for the subtask 'landmark'"),
        ("grid2matrix", ("--data", "grids:big"), "give rows and columns, 1 to 999 each, such as grids:4x6"),
        ("grid2matrix", ("--set", "grid2matrix.colours=99"), "grid2matrix.colours: Input should be less than"),
        ("grid2matrix", ("--set", "grid2matrix.farben=3"), "grid2matrix.farben: there is no such setting"),
        ("grid2matrix", ("--set", "grid2matrix.layout=stripes"), "only one grid of the layout stripes"),
        ("grid2matrix", ("--set", "grid2matrix=3"), "say which setting of the task"),
        ("modality_interference", ("--data", "mc:/nowhere.jsonl"), "there is no file /nowhere.jsonl"),
        (
            "modality_interference",
            ("--set", "modality_interference.perturbations=blur"),
            "unrelated_text, related_text",
        ),
        ("chair", ("--data", "amber"), "it needs scenes:SPLIT"),
        ("dash_b", ("--data", "dash_b:MME"), "is no DASH-B release: it has no dash_benchmark_neg.json"),
        ("dash_b", ("--set", "dash_b.prompt=Is it there?"), "it must contain {object}"),
        ("hallusionbench", ("--data", "hallusionbench:MME"), "there is no file"),
        ("repope", ("--data", "repope:MME"), "there is no file"),
        ("repope", ("--set", "repope.images=/nowhere"), "repope.images: there is no folder /nowhere"),
        ("yesno", ("--data", "yesno:/nowhere.jsonl"), "there is no file /nowhere.jsonl"),
        (
            "chair",
            ("--data", "flickr:x"),
            "unknown data 'flickr:x'; give scenes:SPLIT[:SEED], coco:FOLDER, folder:FOLDER, amber:F",
        ),
        ("shr", (), "allowed: chair, pope, amber"),
        ("mmhal", ("--data", "mmhal:MME"), "there is no file"),
        ("openchair", (), "openchair needs the list of words and their concreteness"),
        ("openchair", ("--set", "openchair.concreteness=/nowhere"), "there is no file /nowhere"),
        ("object_halbench", ("--set", "object_halbench.mapping=/nowhere"), "there is no file /nowhere"),
        ("amber_generative", ("--set", "amber_generative.vectors=/nowhere"), "there is no file /nowhere"),
    ],
)
def test_mistakes_are_one_line(task, options, message, sources, tmp_path, capsys):
    given = [item.replace("MME", str(tmp_path / "mme")) for item in options]
    data = () if "--data" in options else ("--data", sources.get(task, sources["chair"]))
    code, _, err = call(capsys, "eval", "--task", task, *data, *OPTIONS, *given, "--out", tmp_path / "run")
    assert code == 2 and message in err, err
    # A line for each mistake: the list of images that the second one names is missing, too.
    assert all(line.startswith("error: ") for line in err.splitlines()) and len(err.splitlines()) <= 2, err
    assert not (tmp_path / "run").exists()


def test_pictures_that_are_missing_are_skipped_and_counted(sources, tmp_path, capsys):
    (tmp_path / "amber" / "image" / "AMBER_2.jpg").unlink()
    out = tmp_path / "run"
    assert call(capsys, "eval", "--task", "amber", "--data", sources["amber"], *OPTIONS, "--out", out)[0] == 0
    counts = read_results(out).methods[0].samples["amber"]
    assert (counts.asked, counts.answered, counts.skipped) == (15, 10, 5)
    assert read_results(out).data["images_without_file"] == 1


def made(task: str, sources, **settings) -> Task:
    run = RunSettings(data=sources[task], tasks=[task], **{task: settings})
    return task_class(task)(open_data(run), run.of_task(task), seed=0)


def answer_all(task: Task, answers) -> list[dict]:
    """Records of made-up answers: `answers` gives the text to a sample."""
    return [
        {
            "task": task.name,
            "sample": sample.key,
            "image_id": sample.image_id,
            "prompt": sample.prompt,
            "text": answers(sample),
            "score": task.score(sample, answers(sample)),
        }
        for sample in task.samples()
    ]


def values(records: list[dict]) -> dict[str, float]:
    from vlm_guard.eval.run.summary import MethodRecords

    counted = [{**record, "finished": True, "tokens": 1} for record in records]
    return {name: item.value for name, item in MethodRecords(counted).estimates(100).items()}


def test_amber_is_scored_as_its_own_scorer_scores(sources):
    task = made("amber", sources)
    replies = ("Yes", "No", "no.", "No")
    records = answer_all(task, lambda sample: replies[int(sample.key.split("/")[1]) % 4])
    from vlm_guard.eval.tasks.amber import score_amber

    direct = score_amber(task.data.content, [record["text"] for record in records])
    assert task.summarise(records, task.describe()) == direct
    found = values(records)
    for group in ("all", "existence", "attribute", "relation", "state"):
        assert round(100 * found[f"amber.{group}.accuracy"], 1) == direct[group]["accuracy"]
        assert round(100 * found[f"amber.{group}.recall"], 1) == direct[group]["recall"]
    assert found["amber.all.unparsed"] == direct["all"]["unparsed"] / direct["all"]["questions"]


def test_mme_counts_a_picture_once_and_both_of_its_questions(sources):
    task = made("mme", sources)
    records = answer_all(
        task, lambda sample: "Yes" if "/1/" in sample.key else "No" if "cat" in sample.prompt else "Yes"
    )
    from vlm_guard.eval.tasks.mme import score_mme

    questions = [question for number in task.data.images for question in task.data.content[number]]
    direct = score_mme(questions, [record["text"] for record in records])
    assert task.summarise(records, task.describe()) == direct
    found = values(records)
    assert 100 * found["mme.total"] == pytest.approx(direct["total"])
    assert 100 * found["mme.existence.score"] == pytest.approx(125) and found["mme.count.accuracy_plus"] == 1
    first = [path.parent.name for path in list(task.data.images.values())[:4]]
    assert first == ["existence", "count", "position", "color"], "a count takes of every subtask"


def test_grids_are_scored_as_their_own_scorer_scores(sources):
    task = made("grid2matrix", sources, first_seed=5)
    grids = task.data.content
    right = {number: str(grid.tolist()) for number, grid in grids.items()}
    texts = {1: right[1], 2: "[[0, 0, 0], [0, 0, 0]]", 3: "[[1]]", 4: "no"}
    records = answer_all(task, lambda sample: texts.get(sample.image_id, right[sample.image_id]))
    from vlm_guard.eval.tasks.grid2matrix import make_grid, score_grids

    direct = score_grids(list(grids.values()), [record["text"] for record in records]).to_dict()
    assert task.summarise(records, task.describe()) == direct
    found = values(records)
    for name in ("cell_accuracy", "exact_match", "parse_error_rate", "shape_mismatch_rate"):
        assert found[f"grid2matrix.{name}"] == pytest.approx(direct[name])
    assert np.array_equal(grids[1], make_grid(2, 3, 3, seed=5)) and len(grids) == 100


def test_interference_shows_each_perturbation_in_the_picture_or_the_text(sources):
    task = made("modality_interference", sources)
    samples = {sample.key.partition("/")[2]: sample for sample in task.samples()}
    assert sorted(samples)[:3] == ["1/origin", "1/related_text", "1/unrelated_text"]
    assert {key.split("/")[1] for key in samples if key.startswith("2")} == {
        "origin",
        "noise_image",
        "full_black",
        "full_white",
        "switched_image",
    }
    from vlm_guard.untrusted.picture_reader import read_picture

    shown = {key: task.picture(sample, read_picture) for key, sample in samples.items()}
    assert shown["1/unrelated_text"].tobytes() == shown["1/origin"].tobytes()
    assert samples["1/unrelated_text"].prompt.endswith(samples["1/origin"].prompt)
    assert shown["2/full_black"].getcolors() == [(96 * 64, (0, 0, 0))]
    assert shown["2/noise_image"].size == shown["2/origin"].size
    others = {shown[key].tobytes() for key in shown if key.endswith("origin") and not key.startswith("2")}
    assert shown["2/switched_image"].tobytes() in others
    again = made("modality_interference", sources)
    assert again.samples() == task.samples()
    wrong = answer_all(task, lambda sample: "A" if sample.variant else "B")
    found = values(wrong)
    assert found["interference.text.full_black.drop"] == 1 and found["interference.image.related_text.drop"] == 0
    assert found["interference.drop"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"options": None}, "record 1 has no options"),
        ({"options": ["one"]}, "options must be two to 26 texts"),
        ({"options": {"a": "x", "B": "y"}}, "options must be"),
        ({"answer": "a bird"}, "the answer 'a bird' must be one of the letters A, B"),
        ({"question": 3}, "question, answer and image must be text"),
        ({"image": "../outside.png"}, "lies outside of"),
        ({"image": "/etc/passwd"}, "lies outside of"),
    ],
)
def test_broken_multiple_choice_files_are_explained(tmp_path, record, message):
    whole = {"question": "?", "options": ["a dog", "a cat"], "answer": "B", "image": "x.png"} | record
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({name: value for name, value in whole.items() if value is not None}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_choices(path)


def test_the_listing_is_what_runs_understand(capsys):
    code, out, _ = call(capsys, "tasks", "--json")
    listed = json.loads(out)
    assert code == 0 and [task["name"] for task in listed] == task_names()
    assert [task["name"] for task in listed if task["default"]] == ["chair", "pope"] == RunSettings().tasks
    assert all(task["help"] and task["data"] and task["source"] and task["columns"] for task in listed)
    assert all(item["help"] for task in listed for item in task["settings"])
    code, out, _ = call(capsys, "tasks", "pope", "--json")
    assert code == 0 and {"name": "parser", "option": "--parser"}.items() <= json.loads(out)["settings"][4].items()
    code, out, _ = call(capsys, "tasks")
    assert code == 0 and all(name[:12] in out for name in task_names())
    assert "--set grid2matrix.colours=" in call(capsys, "tasks", "grid2matrix")[1]
    code, _, err = call(capsys, "tasks", "popes")
    assert code == 2 and "Did you mean 'pope'" in err


def test_every_flag_of_a_task_is_an_option_and_settings_modules_belong_to_their_tasks(capsys):
    code, out, _ = call(capsys, "eval", "--help")
    assert code == 0
    for task, settings in settings_with_flags().items():
        assert task_class(task).Settings is settings
        flags = [item["option"] for item in described_tasks()[task_names().index(task)]["settings"]]
        assert any(flag.startswith("--") and " " not in flag for flag in flags)
        assert all(flag in out for flag in flags if " " not in flag)


def test_task_settings_may_be_given_in_every_way(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("prompt: Describe it.\nparser: opera\npope: {per_image: 4}\ngrid2matrix: {colours: 5}\n")
    settings = read_settings(path, {"options": {"pope.strategies": "random, popular", "var.layers": "all"}})
    assert settings.chair.prompt == "Describe it." and settings.chair.max_new_tokens == 512
    assert (settings.pope.parser, settings.pope.per_image) == ("opera", 4)
    assert settings.pope.strategies == ["random", "popular"]
    assert settings.grid2matrix.colours == 5 and settings.options == {"var.layers": "all"}
    copied = settings.model_copy(update={"tasks": ["chair"]})
    assert copied.chair.prompt == "Describe it."
    assert RunSettings(max_new_tokens=7, chair={"prompt": "?"}).chair.model_dump() == {
        "prompt": "?",
        "max_new_tokens": 7,
    }
    assert RunSettings(pope=settings.pope).pope == settings.pope
    with pytest.raises(AttributeError):
        _ = settings.nothing


def test_names_are_checked():
    chair = task_class("chair")
    with pytest.raises(ValueError, match="must be lower case"):
        register_task("My Task")(chair)
    with pytest.raises(ValueError, match=r"already taken by vlm_guard\.eval\.tasks\.chair\.task\.ChairTask"):
        register_task("chair")(type("Other", (Task,), {}))
    assert task_class("chair") is chair and chair.name == "chair"


def test_records_of_different_tasks_do_not_disturb_each_other(sources, tmp_path, capsys):
    out = tmp_path / "run"
    both = ("eval", "--task", "pope,chair", "--data", sources["chair"], *OPTIONS, "--max-new-tokens", "6", "--out", out)
    assert call(capsys, *both)[0] == 0
    records = read_records(out / "none" / "samples.jsonl")[0]
    assert {key.split("/")[0] for key in records} == {"chair", "pope"}
    answers = {"yes": True, "no": False}
    asked = [record for record in records.values() if record["task"] == "pope"]
    read = [record for record in asked if record["score"]["answer"] in answers]
    assert len(read) > 5 and all((item["yes_margin"] > 0) == answers[item["score"]["answer"]] for item in read)
    assert not any("yes_margin" in record for record in records.values() if record["task"] == "chair")
    method = read_results(out).methods[1]
    assert set(method.fair) == {"chair", "pope"} and not read_results(out).methods[0].fair
    wanted = sum(len(record["score"]["strategies"]) for record in asked)
    said = read_records(out / method.directory / "samples.jsonl")[0].values()
    yes = [len(item["score"]["strategies"]) for item in said if item["score"].get("answer") == "yes"]
    assert method.fair["pope"]["yes_ratio"] == pytest.approx(sum(yes) / wanted)
    assert {"pope.over_control.f1", "chair.equal_length.chair_i"} <= set(method.estimates)
    assert "F1 − control" in render_table(compare_runs([out]).results, "markdown")
    names = list(read_results(out).methods[0].estimates)
    assert names[0] == "chair_i" and names[-1] == "pope.mean.unparsed", "in the listing's order, as ever"
