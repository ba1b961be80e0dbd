"""File names that stand in files stay in their folder: by their letters, and after every link is followed."""

import json
import os

import pytest
from run_records import careful, write_run
from small_coco import make_coco_folder

from vlm_guard.cli import main
from vlm_guard.eval.data.coco import read_coco
from vlm_guard.eval.data.own_pictures import open_pictures
from vlm_guard.eval.data.picture_marks import picture_marks
from vlm_guard.untrusted.paths import Inside, relative_name


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize("name", ["1.jpg", "val2014/1.jpg", "a b/c..d.png", "..1.png", "ü.png", "a\\b.png"])
def test_names_inside(name):
    assert relative_name(name, "a.json: image 1") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../1.jpg",
        "a/../../1.jpg",
        "a\\..\\1.jpg",
        "/etc/passwd",
        "\\\\host\\a",
        "C:\\1.jpg",
        "~/1.jpg",
        "a/",
    ],
)
def test_names_that_lead_out(name):
    check_refused(name)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud83d", "n" * 256, "n/" * 600 + "n"])
def test_what_is_no_name(name):
    check_refused(name)


def check_refused(name):
    with pytest.raises(ValueError, match=r"a\.json: image 1: ") as raised:
        relative_name(name, "a.json: image 1")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_links_are_followed(tmp_path):
    folder, outside = tmp_path / "data", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.png").touch()
    (folder / "b.png").touch()
    (folder / "inner.png").symlink_to(folder / "b.png")
    (folder / "outer.png").symlink_to(outside / "a.png")
    (folder / "sub" / "way").symlink_to(outside)
    (tmp_path / "data2").mkdir()
    inside = Inside(folder)
    assert (
        inside.holds(folder / "b.png") and inside.holds(folder / "inner.png") and inside.holds(folder / "sub" / "new")
    )
    for path in (folder / "outer.png", folder / "sub" / "way" / "a.png", tmp_path / "data2", folder / ".." / "outside"):
        assert not inside.holds(path)
        with pytest.raises(ValueError, match="leads out of"):
            inside.check(path)
    (tmp_path / "linked").symlink_to(folder)
    assert Inside(tmp_path / "linked").holds(tmp_path / "linked" / "b.png")


def change_file_name(folder, name):
    for path in (folder / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["images"][1]["file_name"] = name
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "images/../../secret.png"])
def test_annotations_cannot_name_a_file_elsewhere(tmp_path, capsys, name):
    folder = make_coco_folder(tmp_path / "coco", images=2)
    (folder / "images" / "000000000002.png").rename(tmp_path / "secret.png")
    change_file_name(folder, name)
    assert run("pope-questions", tmp_path / "out", "--coco", folder) == 2
    error = capsys.readouterr().err
    assert "instances_test.json: image 2: the file name" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["file", "folder", "found by its name"])
def test_links_out_of_a_data_folder_are_refused(tmp_path, what):
    folder = make_coco_folder(tmp_path / "coco", images=2)
    secret = tmp_path / "secret"
    secret.mkdir()
    picture = folder / "images" / "000000000002.png"
    picture.rename(secret / picture.name)
    if what == "file":
        picture.symlink_to(secret / picture.name)
    elif what == "folder":
        (folder / "images" / "000000000001.png").rename(secret / "000000000001.png")
        (folder / "images").rmdir()
        (folder / "images").symlink_to(secret)
    else:
        (folder / "elsewhere").mkdir()
        (folder / "elsewhere" / picture.name).symlink_to(secret / picture.name)
    with pytest.raises(ValueError, match="leads out of"):
        read_coco(folder)


@pytest.fixture
def received(tmp_path):
    """A run from elsewhere, the data set it names, and a picture beside that."""
    coco = make_coco_folder(tmp_path / "coco", images=2)
    os.link(coco / "images" / "000000000001.png", tmp_path / "secret.png")
    write_run(tmp_path / "run", coco, {"none": careful})
    return tmp_path


def change_records(folder, image):
    path = folder / "run" / "none" / "samples.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record.pop("crc32", None)  # whoever changes a record can leave its checksum out, as old runs have none
    path.write_text("".join(json.dumps({**record, "image": image}) + "\n" for record in records))


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd"])
def test_a_received_record_cannot_bring_another_file_into_the_page(received, capsys, image):
    change_records(received, image)
    assert run("report", received / "run", "--images", received / "coco") == 2
    error = capsys.readouterr().err
    assert "samples.jsonl: sample 'chair/1'" in error and "leads out of its folder" in error
    assert not (received / "run" / "report.html").exists()


def test_a_received_run_cannot_choose_the_folder_of_the_pictures(received, capsys):
    """run.json could say "/": only a folder with the run's own annotation files counts."""
    change_records(received, "secret.png")
    named = received / "run" / "none" / "run.json"
    named.write_text(json.dumps({"fingerprint": {}, "sessions": [{"image_folder": str(received)}]}))
    assert run("report", received / "run") == 0
    assert "data:image/jpeg" not in (received / "run" / "report.html").read_text()
    change_records(received, "images/000000000001.png")
    named.write_text(json.dumps({"fingerprint": {}, "sessions": [{"image_folder": str(received / "coco")}]}))
    assert run("report", received / "run") == 0
    assert "data:image/jpeg" in (received / "run" / "report.html").read_text()


def test_a_folder_counts_also_by_the_very_pictures_that_the_run_has_noted(received, capsys):
    """As `vlm-guard ask --images` needs it, whose questions lie elsewhere; names or one picture are not enough."""
    folder = received / "coco" / "images"
    marks = picture_marks(open_pictures(str(folder)))
    assert sorted(marks) == ["000000000001.png", "000000000002.png"]
    named = received / "run" / "none" / "run.json"
    path = received / "run" / "none" / "samples.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record.pop("crc32", None)
        record["image"] = record["image"].removeprefix("images/")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    other = {**marks, "000000000001.png": "0" * 64}
    one = {"000000000001.png": marks["000000000001.png"]}
    outside = {**marks, "../../secret.png": marks["000000000001.png"]}
    for noted, found in ((marks, True), (other, False), (one, False), (outside, False), ({}, False)):
        session = {"image_folder": str(folder), "picture_marks": noted}
        named.write_text(json.dumps({"fingerprint": {}, "sessions": [session]}))
        assert run("report", received / "run") == 0
        assert ("data:image/jpeg" in (received / "run" / "report.html").read_text()) == found, noted
    named.write_text(json.dumps({"fingerprint": {}, "sessions": [{"image_folder": str(folder), "picture_marks": [1]}]}))
    assert run("report", received / "run") == 2 and "'picture_marks' of session 1" in capsys.readouterr().err


@pytest.mark.parametrize("directory", ["../elsewhere", "/etc", "none/..", ".", "a/b"])
def test_results_cannot_name_records_elsewhere(received, capsys, directory):
    path = received / "run" / "results.json"
    content = json.loads(path.read_text())
    content["methods"][0]["directory"] = directory
    path.write_text(json.dumps(content))
    assert run("compare", received / "run") == 2
    error = capsys.readouterr().err
    assert "results.json: method 'none'" in error and error.count("\n") == 1
