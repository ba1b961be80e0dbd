"""Caption files of every origin, and the chair command."""

import gzip
import json

import pytest

from vlm_guard.cli import main
from vlm_guard.eval.tasks.chair.captions import CaptionRecord, read_captions, read_image_list


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"image_id": 139, "caption": "A dog."},
        {"image_id": "139", "text": "A dog."},
        {"image": "000000000139.jpg", "caption": "A dog."},
        {"image": "COCO_val2014_000000000139.jpg", "text": "A dog."},
        {"question_id": 139, "text": "A dog.", "prompt": "Describe.", "model": "x"},
        {"question_id": 5, "image": "139.png", "caption": "A dog.", "text": "the prompt"},
    ],
)
def test_keys(tmp_path, record):
    expected = [CaptionRecord(image_id=139, caption="A dog.")]
    assert read_captions(write_lines(tmp_path / "c.jsonl", record)) == expected
    listed = tmp_path / "c.json"
    listed.write_text(json.dumps([record], indent=2))
    assert read_captions(listed) == expected
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress((json.dumps(record) + "\n\n").encode()))
    assert read_captions(packed) == expected


def test_numbered_questions_take_their_image_from_a_list(tmp_path):
    questions = write_lines(tmp_path / "q.jsonl", {"question_id": 1, "image": "COCO_val2014_000000000139.jpg"})
    captions = write_lines(tmp_path / "c.jsonl", {"question_id": 1, "text": "A dog."})
    images = read_image_list(questions)
    assert images == {1: 139}
    assert read_captions(captions, images)[0].image_id == 139
    with pytest.raises(ValueError, match="question 1 is not in the image list"):
        read_captions(captions, {2: 139})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no captions"),
        ('{"caption": "a"}\n', "record 1 needs one of image_id, image, question_id"),
        ('{"image_id": 1}\n', "one of caption, text; it has image_id"),
        ('{"image_id": 1, "caption": null}\n', "'caption' must be text, not NoneType"),
        ('{"image_id": "dog.jpg", "caption": "a"}\n', "record 1: 'dog.jpg' names no image"),
        ('{"image_id": 1, "caption": "a"}\n{"image_id"\n', "line 2 is no valid JSON"),
        ("3\n", "record 1 must be a JSON object, not int"),
        ("[1, 2", "no valid JSON"),
    ],
)
def test_broken_files_are_explained(tmp_path, content, message):
    path = tmp_path / "c.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(path)


def test_separators_marks_and_broken_archives(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes('\ufeff{"image_id": 1, "caption": "a\u2028dog"}\r\n'.encode())
    assert read_captions(path)[0].caption == "a\u2028dog"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_captions(path)
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_captions(packed)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


@pytest.fixture
def files(tmp_path):
    captions = write_lines(
        tmp_path / "captions.jsonl",
        {"image_id": 1, "caption": "A dog and a cat."},
        {"image_id": 2, "caption": "A cat."},
        {"image_id": 2, "caption": ""},
    )
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps({"1": ["dog"], "2": ["cat"]}))
    return captions, objects


def test_the_command_prints_json(files, capsys, tmp_path):
    captions, objects = files
    records = tmp_path / "records.jsonl"
    assert run("chair", captions, "--objects", objects, "--json", "--per-caption", records) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["metric"], report["mode"]) == ("CHAIR", "pattern")
    assert (report["captions"], report["images"], report["hallucinated_captions"]) == (3, 2, 1)
    assert report["chair_i"] == pytest.approx(1 / 3)
    first = json.loads(records.read_text().splitlines()[0])
    assert [mention["hallucinated"] for mention in first["mentions"]] == [False, True]


def test_the_command_prints_counts_for_people(files, capsys):
    captions, objects = files
    assert run("chair", captions, "--objects", objects) == 0
    lines = capsys.readouterr().out
    assert "text mode pattern" in lines
    assert "1 of 3 captions" in lines
    assert "1 of 3 mentions" in lines


def test_annotations_and_folder_give_the_same_as_object_sets(tmp_path, capsys):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    images = [{"id": 1, "file_name": "1.jpg"}]
    instances = annotations / "instances_mine.json"
    instances.write_text(
        json.dumps(
            {
                "images": images,
                "categories": [{"id": 18, "name": "dog"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 18}],
            }
        )
    )
    references = annotations / "captions_mine.json"
    references.write_text(
        json.dumps({"images": images, "annotations": [{"id": 1, "image_id": 1, "caption": "A kitten."}]})
    )
    captions = write_lines(tmp_path / "c.jsonl", {"image_id": 1, "caption": "A dog, a cat, a bird."})
    reports = []
    for source in (["--coco", tmp_path], ["--instances", instances, "--captions", references]):
        assert run("chair", captions, *source, "--json") == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1]
    assert (reports[0]["mentions"], reports[0]["hallucinated_mentions"]) == (3, 1)


def test_unknown_images_are_an_error_or_counted(files, capsys, tmp_path):
    captions, objects = files
    objects.write_text(json.dumps({"1": ["dog"]}))
    assert run("chair", captions, "--objects", objects) == 2
    assert "2 of 3 captions" in capsys.readouterr().err
    assert run("chair", captions, "--objects", objects, "--skip-unknown", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["captions"], report["unknown_images"]) == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give the ground truth in one way"),
        (["--coco", "x", "--objects", "y"], "2 of them were given"),
        (["--instances", "x"], "give both --instances and --captions"),
        (["--objects", "nowhere.json"], "nowhere.json"),
        (["--objects", "OBJECTS", "--mode", "wrdnet"], "must be one of pattern, wordnet"),
    ],
)
def test_wrong_use_is_explained_in_one_line(files, capsys, options, message):
    captions, objects = files
    arguments = [objects if option == "OBJECTS" else option for option in options]
    assert run("chair", captions, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_several_files_are_compared_over_the_pictures_that_all_have(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps({str(number): ["dog"] for number in range(1, 41)}))
    greedy, ours = (
        write_lines(tmp_path / f"{name}.jsonl", *({"image_id": n, "caption": text(n)} for n in range(1, last)))
        for name, text, last in (
            ("greedy", lambda n: "A dog and a cat." if n % 2 else "A dog.", 41),
            ("ours", lambda n: "A dog and a cat." if n % 10 == 1 else "A dog.", 36),
        )
    )
    assert run("chair", greedy, ours, "--objects", objects, "--json") == 0
    said = json.loads(capsys.readouterr().out)["methods"]
    assert said["greedy"]["hallucinated_mentions"] == 20
    estimate = said["greedy"]["estimates"]["chair_i"]
    assert estimate["value"] == pytest.approx(20 / 60) and estimate["low"] < estimate["value"] < estimate["high"]
    difference = said["ours"]["difference_to_first"]["chair_i"]
    assert difference["value"] == pytest.approx(4 / 39 - 18 / 53) and difference["images"] == 35
    assert difference["high"] < 0 and difference["verdict"] == "better" and said["ours"]["shared_pictures"] == 35
    assert run("chair", greedy, ours, "--objects", objects) == 0
    printed = capsys.readouterr().out
    assert "− greedy" in printed and "note: differences are over the 35 pictures that all have" in printed
    assert "so few pictures" not in printed
    assert max(map(len, printed[printed.index("n = ") :].splitlines())) <= 80
    assert run("compare", greedy, ours) == 2
    assert f"score them with vlm-guard chair {greedy} {ours}" in capsys.readouterr().err
    assert run("pope", greedy, "--questions", objects) == 2
    assert "these are captions" in capsys.readouterr().err
