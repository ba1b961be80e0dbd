"""Own pictures and own questions: `caption`, `ask`, `--data folder:`, and the files they write."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.data.datasets import open_dataset
from vlm_guard.eval.data.own_pictures import picture_names
from vlm_guard.eval.run.engines import in_process
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.tasks.ask import read_own_questions

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--device", "cpu", "--batch-size", 2, "--method", "none", "--method", "pai:gain=0.4")


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three pictures of MSCOCO's names in two folders, one of them broken, and a file that is none."""
    coco = make_coco_folder(tmp_path / "coco", images=4)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in (1, 2, 3):
        (coco / "images" / f"{number:012d}.png").rename(folder / ("more" if number == 2 else "") / f"{number:012d}.png")
    (folder / "broken.JPG").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_captions_of_a_folder_are_written_once_all_are_there_and_read_by_chair_and_report(pictures, tmp_path, capsys):
    out = tmp_path / "captions.jsonl"
    command = ("caption", pictures, "--out", out, *QUICK, "--max-new-tokens", 8, "--prompt", "Describe it.")
    code, printed, err = call(capsys, *command)
    assert code == 0, err
    assert "1 image could not be read and left out" in printed
    assert f"answers: {out} (without 2: 1 image could not be read)" in printed
    lines = lines_of(out)
    shown = " ".join(printed.split())
    assert printed.count("more/000000000002.png") == 1
    assert all(" ".join(line["caption"].split()) in shown for line in lines)
    assert ".." not in printed.partition("n = 3")[2].partition("results:")[0], "no intervals of three pictures"
    assert [(line["image"], line["method"]) for line in lines] == [
        (name, method)
        for method in ("none", "pai:gain=0.4")
        for name in ("000000000001.png", "000000000003.png", "more/000000000002.png")
    ]
    assert all(line["caption"] and line["tokens"] == 8 and not line["finished"] for line in lines)
    assert "image_id" not in lines[0], "a folder gives no ids, so none are made up"
    results = read_results(tmp_path / "captions.jsonl.run")
    assert results.tasks["caption"]["prompt"] == "Describe it." and results.data["name"] == "folder:pictures"

    before = out.read_bytes()
    assert call(capsys, *command)[0] == 0 and out.read_bytes() == before
    code, printed, err = call(capsys, "chair", out, "--coco", tmp_path / "coco", "--json")
    assert code == 0, err
    reports = json.loads(printed)["methods"]
    assert list(reports) == ["none", "pai:gain=0.4"]
    assert [report["captions"] for report in reports.values()] == [3, 3]
    code, printed, _ = call(capsys, "chair", out, "--coco", tmp_path / "coco", "--per-caption", tmp_path / "each.jsonl")
    assert printed.startswith("none\nCHAIR, text mode pattern, 3 captions") and "\npai:gain=0.4\nCHAIR" in printed
    assert {line["method"] for line in lines_of(tmp_path / "each.jsonl")} == {"none", "pai:gain=0.4"}
    code, printed, err = call(capsys, "report", out)
    assert code == 0, err
    page = (tmp_path / "captions.jsonl.run" / "report.html").read_text(encoding="utf-8")
    items = json.loads(page.split('id="data">')[1].split("</script>")[0])["items"]
    assert sum(item["picture"] is not None for item in items) == 3, "the pictures are found where they were"


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(pictures, tmp_path, capsys, monkeypatch):
    (pictures / "broken.JPG").unlink()
    whole, out = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    options = (*QUICK, "--max-new-tokens", 6)
    assert call(capsys, "caption", pictures, "--out", whole, *options)[0] == 0
    asked = []
    real = in_process.generate_batch

    def stops(*arguments):
        asked.append(arguments)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(in_process, "generate_batch", stops)
    code, printed, err = call(capsys, "caption", pictures, "--out", out, *options)
    assert code == 130 and not printed
    assert f"interrupted: 4 of 6 answers are kept ({out}); start the same command again to go on from there" in err
    assert not out.exists(), "a file of answers is whole or not there"
    monkeypatch.setattr(in_process, "generate_batch", real)
    assert call(capsys, "caption", pictures, "--out", out, *options)[0] == 0
    assert out.read_bytes() == whole.read_bytes()


def test_an_empty_run_that_is_stopped_says_so(pictures, tmp_path, capsys, monkeypatch):
    def stops(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm_guard.eval.run.runner.set_up", stops)
    code, _, err = call(capsys, "caption", pictures, "--out", tmp_path / "c.jsonl", *QUICK)
    assert code == 130 and "there were no answers yet" in err
    assert not (tmp_path / "c.jsonl.run").exists()


QUESTIONS = [
    {"image": "000000000003.png", "question": "Is there a dog in the image?", "answer": "No", "question_id": 11},
    {"image": "000000000001.png", "question": "What is it?", "options": ["a dog", "a cat"], "answer": "a cat"},
    {"image": "./000000000003.png", "text": "Is there a cat in the image?", "label": "yes", "question_id": 12},
    {"image": "000000000003.png", "question": "Describe it.", "answer": "A street.", "extra": {"mine": [1]}},
]


def test_answers_keep_what_questions_bring_and_pope_reads_them(pictures, tmp_path, capsys):
    asked = write_lines(tmp_path / "questions.jsonl", QUESTIONS)
    out = tmp_path / "answers.jsonl"
    options = ("--images", pictures, "--max-new-tokens", 4, "--suffix", " Answer briefly.")
    code, printed, err = call(capsys, "ask", asked, "--out", out, *QUICK, *options)
    assert code == 0, err
    assert "right ↑" in printed and "unread ↓" in printed
    lines = [line for line in lines_of(out) if line["method"] == "none"]
    assert [line["question_id"] for line in lines] == [11, 2, 12, 4], "in the order of the file"
    assert [line.get("label") for line in lines] == ["no", "B", "yes", None]
    assert lines[3]["extra"] == {"mine": [1]} and lines[3]["answer"] == "A street." and "right" not in lines[3]
    assert lines[1]["options"] == {"A": "a dog", "B": "a cat"} and lines[1]["read"] in ("A", "B", "unparsed")
    assert all(line["right"] == (line["read"] == line["label"]) for line in lines[:3])
    results = read_results(tmp_path / "answers.jsonl.run")
    assert results.data["images"] == 2 and results.methods[0].model_dump()["ask"]["labelled"] == 3
    assert "picture_marks" not in results.methods[0].sessions[0], "nothing of the machine in what is passed on"
    assert call(capsys, "report", out)[0] == 0
    assert (tmp_path / "answers.jsonl.run" / "report.html").read_text().count('"picture":"data:image/jpeg') == 2

    yes_no = write_lines(tmp_path / "yes_no.jsonl", [line for line in lines_of(out) if "label" in line])
    code, printed, err = call(capsys, "pope", yes_no)
    assert code == 2 and "record 2" in err and "'label' is 'B'" in err
    yes_no = write_lines(tmp_path / "yes_no.jsonl", [x for x in lines_of(out) if x.get("label") in ("yes", "no")])
    code, printed, err = call(capsys, "pope", yes_no, "--json")
    assert code == 0, err
    scored = json.loads(printed)["methods"]
    assert scored["none"]["questions"] == 2 and set(scored["none"]["strategies"]) == {"all"}
    files = [{"text": x["question"], **{key: x[key] for key in ("question_id", "image", "label")}} for x in lines[::2]]
    questions = write_lines(tmp_path / "pope_random.jsonl", files)
    code, printed, err = call(capsys, "pope", yes_no, "--questions", questions)
    assert code == 0, err
    assert printed.count("POPE, answers read by 'strict'") == 2 and "random" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_a_list_gives_order_and_ids(pictures, tmp_path, capsys):
    listed = write_lines(
        pictures / "list.jsonl",
        [{"image": "more/000000000002.png", "image_id": "22"}, {"image": "000000000001.png", "image_id": 7}],
    )
    data = open_dataset(f"folder:{listed}")
    assert {number: path.name for number, path in data.images.items()} == {
        22: "000000000002.png",
        7: "000000000001.png",
    }
    out = tmp_path / "c.jsonl"
    options = ("--device", "cpu", "--method", "none", "--max-new-tokens", 2, "--count", 1)
    code, _, err = call(capsys, "caption", listed, "--out", out, *options)
    assert code == 0, err
    assert [(line["image_id"], line["image"]) for line in lines_of(out)] == [(22, "more/000000000002.png")]
    code, _, err = call(capsys, "caption", listed, "--out", out, *options[:-1], 2)
    assert code == 2 and "holds a run with other settings: data.images was 1 and is now 2" in err


def test_thousands_of_pictures_are_listed_at_once(tmp_path):
    for part in range(5):
        (tmp_path / f"{part:02d}").mkdir()
        for number in range(1000):
            (tmp_path / f"{part:02d}" / f"{number:04d}.jpg").touch()
    begin = time.perf_counter()
    data = open_dataset(f"folder:{tmp_path}")
    assert time.perf_counter() - begin < 3, "20,000 take about a second on a busy core"
    assert len(data.images) == 5000 and data.images[5000].name == "0999.jpg"


def folder_of_nothing(place: Path) -> Path:
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    return place


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "lists no picture"),
        (["nonsense"], "record 1 must be a JSON object, not str"),
        ([{"imgae": "a.png"}], "record 1: there is no field 'imgae'; did you mean 'image'? (fields: image, image_id)"),
        ([{"image_id": 3}], "record 1: 'image' is missing; it must be text"),
        ([{"image": 3}], "record 1: 'image' is 3; it must be text"),
        ([{"image": "../secret.png"}], "record 1: the file name '../secret.png' leads out of its folder"),
        ([{"image": "/etc/passwd"}], "record 1: the file name '/etc/passwd' leads out of its folder"),
        ([{"image": "a.png"}, {"image": "./a.png"}], "record 2 names the picture 'a.png', which stands in the list"),
        ([{"image": "a.png", "image_id": 1}, {"image": "b.png"}], "1 of 2 records have an image_id"),
        ([{"image": "a.png", "image_id": 1}, {"image": "b.png", "image_id": "1"}], "two pictures have the image_id 1"),
        ([{"image": "a.png", "image_id": "x"}], "record 1: 'image_id' is 'x'; it must be a whole number"),
        ([{"image": "gone.png"}], "none of the 1 pictures is there, for example"),
    ],
)
def test_mistakes_in_a_list_are_one_line(records, message, tmp_path):
    listed = write_lines(tmp_path / "list.jsonl", records)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_dataset(f"folder:{listed}")
    assert message in str(caught.value) and str(listed) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "a.png"}, "'question' is missing; it must be text"),
        ({"image": "a.png", "question": "  "}, "the question is empty"),
        ({"image": "a.png", "question": 3}, "'question' is 3; it must be text"),
        ({"question": "What?"}, "'image' is missing"),
        ({"image": "../a.png", "question": "What?"}, "leads out of its folder"),
        ({"image": "a.png", "question": "What?", "anwser": "yes"}, "no field 'anwser'; did you mean 'answer'?"),
        ({"image": "a.png", "question": "What?", "text": "What?"}, "has both 'question' and 'text'"),
        ({"image": "a.png", "question": "What?", "options": ["one"]}, "options must be two to 26 texts"),
        ({"image": "a.png", "question": "What?", "options": {"": "x", "A": "y"}}, "options must be two to 26 texts"),
        ({"image": "a.png", "question": "What?", "options": ["x", "y"], "answer": "z"}, "must be one of the letters A"),
        ({"image": "a.png", "question": "What?", "answer": True}, "'answer' is True; it must be text"),
    ],
)
def test_mistakes_in_questions_are_one_line(record, message, tmp_path):
    asked = write_lines(tmp_path / "questions.jsonl", [{"image": "a.png", "question": "Fine?"}, record])
    with pytest.raises(ValueError) as caught:
        read_own_questions(asked)
    assert str(caught.value).startswith(f"{asked}: record 2") and message in str(caught.value)


def test_wrong_use_is_one_line_and_leaves_nothing_behind(pictures, tmp_path, capsys):
    (tmp_path / "list.jsonl").write_text("{'image': 'a.png'}\n")
    foreign = write_lines(tmp_path / "foreign.jsonl", [{"caption": "mine"}])
    outside = tmp_path / "links"
    outside.mkdir()
    (outside / "a.png").symlink_to(pictures / "000000000001.png")
    empty = folder_of_nothing(tmp_path / "empty")
    out = tmp_path / "new" / "c.jsonl"
    for arguments, message in (
        (("caption", tmp_path / "nowhere", "--out", out), "there is no folder and no list"),
        (("caption", empty, "--out", out), "has no picture in it or below it; files that end in .png"),
        (("caption", tmp_path / "list.jsonl", "--out", out), "line 1 is no valid JSON"),
        (("caption", outside, "--out", out), "leads out of"),
        (("caption", pictures, "--out", foreign), "was not written by a run of this program"),
        (("caption", pictures, "--out", tmp_path), "is a folder; give the name of the file to write"),
        (("ask", tmp_path / "nowhere.jsonl", "--out", out), "there is no file"),
        (("ask", tmp_path / "list.jsonl", "--out", out, "--images", tmp_path / "no"), "there is no folder"),
        (
            ("eval", "--task", "caption", "--data", f"folder:{pictures}", "--prompt", "Hello?", "--out", out),
            "--prompt is an option of the task chair, which is not asked; give --set caption.prompt=...",
        ),
        (("eval", "--task", "pope", "--data", f"folder:{pictures}", "--out", out), "cannot be asked about --data"),
        (("eval", "--task", "caption", "--data", f"folder:{pictures}", "--split", "x", "--out", out), "a split is for"),
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1, err
    assert foreign.read_text() == '{"caption": "mine"}\n' and not (tmp_path / "new").exists()


def test_a_folder_is_listed_by_endings_without_links_to_folders(pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "x.png")
    (pictures / "linked").symlink_to(other)
    names = ["000000000001.png", "000000000003.png", "broken.JPG", "more/000000000002.png"]
    assert picture_names(pictures) == names
