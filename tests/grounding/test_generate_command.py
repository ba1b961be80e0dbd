"""`vlm-guard generate --grounding`: what stands in the terminal and in JSON."""

import json

import pytest
from PIL import Image

from vlm_guard.cli import main
from vlm_guard.eval.scenes.render import render

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(render("broken", 20261130, 3).pixels).resize((192, 192)).save(path)
    return path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *map(str, arguments)])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def test_json_has_scores_parts_and_boxes(picture, capsys):
    code, out, err = run(
        capsys, picture, "--method", "none", "--grounding", "--words", "coco", "--repair", "drop", "--json"
    )
    assert code == 0, err
    (answer,) = json.loads(out)
    assert answer["mentions"]
    for mention in answer["mentions"]:
        assert answer["text"][mention["start"] : mention["end"]] == mention["text"]
        assert set(mention["parts"]) == {"lens", "self_check"} and mention["verdict"] in ("grounded", "doubtful")
        left, top, right, bottom = mention["box_pixels"]
        assert 0 <= left < right <= 192 and 0 <= top < bottom <= 192
        assert left == pytest.approx(mention["box"]["left"] * 192, abs=0.5)
    doubtful = {mention["noun"] for mention in answer["mentions"] if mention["verdict"] == "doubtful"}
    assert {noun for part in answer["repaired"]["removed"] for noun in part["nouns"]} == doubtful


def test_the_terminal_marks_words_by_signs_and_fits_eighty_columns(picture, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, picture, "--method", "none", "--grounding", "--repair", "drop")
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in out
    assert "✓" in lines[0] or "✗" in lines[0]
    head = next(number for number, line in enumerate(lines) if "score" in line and "self-check" in line)
    first = lines[head + 1]
    assert first[0] in "✓✗" and " to " in first
    assert any(line.startswith("repaired: ") for line in lines)


def test_words_may_come_from_a_file_and_mistakes_are_said_in_one_line(picture, capsys, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("zebra crossing\n\n", encoding="utf-8")
    code, out, err = run(capsys, picture, "--method", "none", "--grounding", "--words", words)
    assert code == 0 and "no thing was found" in out, err
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for arguments, message in (
        (("--repair", "drop"), "give --grounding with it"),
        (("--grounding", "--repair", "burn"), "allowed: drop, rewrite"),
        (("--grounding", "--words", "nothing.txt"), "neither nouns nor coco"),
        (("--grounding", "--words", tmp_path / "empty.txt"), "is empty"),
        (("--grounding", "--words", tmp_path / "binary.txt"), "no text in UTF-8"),
    ):
        code, out, err = run(capsys, picture, "--method", "none", *arguments)
        assert code == 2 and message in err and out == "" and len(err.strip().splitlines()) == 1, err
