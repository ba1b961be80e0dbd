"""Scenes pass, photographs do not, and the built-in model says so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_guard import cli
from vlm_guard.eval.data.datasets import open_dataset
from vlm_guard.eval.scenes import SPLITS
from vlm_guard.eval.scenes.recognise import (
    MOST_ALIKE,
    SCORES_SAY_NOTHING,
    alike_share,
    may_be_scene,
    note_about,
    note_about_files,
)

PHOTOGRAPHS = Path(__file__).resolve().parents[4] / "shared" / "data" / "coco" / "tiny_coco"


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_passes(split):
    pictures = [Image.open(path) for path in open_dataset(f"scenes:{split}", 60).images.values()]
    assert all(may_be_scene(picture) for picture in pictures)
    assert max(alike_share(picture) for picture in pictures) < MOST_ALIKE
    assert note_about("builtin", pictures[0]) == ""


def test_flat_and_large_pictures_do_not_pass():
    assert not may_be_scene(Image.new("RGB", (96, 96), "green"))
    noise = np.random.default_rng(0).integers(0, 256, (97, 96, 3), dtype=np.uint8)
    assert not may_be_scene(Image.fromarray(noise)) and may_be_scene(Image.fromarray(noise[:96]))


def test_the_model_that_is_loaded_is_named():
    flat = Image.new("L", (640, 480))
    assert note_about("llava-hf/llava-1.5-7b-hf", flat) == ""
    assert note_about("builtin", flat).startswith("The built-in model knows 80 drawn things only")
    assert note_about("smol", flat).startswith("smol knows") and note_about("smol:/a/folder", flat).startswith("smol ")
    assert note_about("smol", flat).count(".") == 1, "one sentence"


def test_many_pictures_are_told_in_one_sentence(tmp_path):
    scene = next(iter(open_dataset("scenes:common", 1).images.values()))
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    Image.new("RGB", (96, 96), "green").save(tmp_path / "flat.png")
    Image.new("RGB", (320, 240), "green").save(tmp_path / "large.png")
    files = sorted(tmp_path.iterdir())
    assert "2 of 3 pictures are none of its scenes" in note_about_files("builtin", [scene, *files])
    assert "none of these pictures is" in note_about_files("smol", files)
    assert note_about_files("builtin", [scene, files[0]]) == note_about_files("someone/model", files) == ""


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs the photographs")
def test_photographs_do_not_pass():
    paths = sorted(PHOTOGRAPHS.glob("*/*.jpg"))
    assert paths and not any(may_be_scene(Image.open(path)) for path in paths)


def test_generate_says_it_beside_the_answers_and_behind_scores(capsys, tmp_path):
    scene = next(iter(open_dataset("scenes:common", 1).images.values()))
    Image.new("RGB", (320, 240), "green").save(tmp_path / "photograph.png")
    for path, said in ((tmp_path / "photograph.png", True), (scene, False)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate", str(path), "--method", "none", "--max-new-tokens", "16", "--grounding"])
        printed = capsys.readouterr()
        assert ended.value.code == 0 and ("note: The built-in model knows" in printed.err) is said
        assert "note:" not in printed.out and (SCORES_SAY_NOTHING in " ".join(printed.out.split())) is said


def test_captions_of_photographs_say_it_once_and_in_the_results(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (320, 240), "green").save(tmp_path / "mine" / "a.png")
    out = tmp_path / "captions.jsonl"
    with pytest.raises(SystemExit):
        cli.main(["caption", str(tmp_path / "mine"), "--out", str(out), "--method", "none", "--max-new-tokens", "2"])
    assert capsys.readouterr().out.count("note: The built-in model knows 80 drawn things") == 1
    assert "none of these pictures" in (tmp_path / "captions.jsonl.run" / "results.json").read_text()
