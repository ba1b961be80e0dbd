"""Scenes pass, photographs do not, and the built-in model says so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_guard import cli
from vlm_guard.eval.data.datasets import open_dataset
from vlm_guard.eval.scenes import SPLITS
from vlm_guard.eval.scenes.recognise import MOST_ALIKE, NO_SCENE, alike_share, may_be_scene, note_about

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


def test_only_the_built_in_model_is_spoken_of():
    flat = Image.new("L", (640, 480))
    assert note_about("builtin", flat) == NO_SCENE and note_about("llava-hf/llava-1.5-7b-hf", flat) == ""
    assert NO_SCENE.count(".") == 1, "one sentence"


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs the photographs")
def test_photographs_do_not_pass():
    paths = sorted(PHOTOGRAPHS.glob("*/*.jpg"))
    assert paths and not any(may_be_scene(Image.open(path)) for path in paths)


def test_generate_says_it_beside_the_answers(capsys, tmp_path):
    scene = next(iter(open_dataset("scenes:common", 1).images.values()))
    Image.new("RGB", (320, 240), "green").save(tmp_path / "photograph.png")
    for path, said in ((tmp_path / "photograph.png", True), (scene, False)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate", str(path), "--method", "none", "--max-new-tokens", "2"])
        printed = capsys.readouterr()
        assert ended.value.code == 0 and (f"note: {NO_SCENE}" in printed.err) is said and NO_SCENE not in printed.out
