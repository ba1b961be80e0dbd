import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vlm_guard.eval.scenes import contact_sheet, load_scenes, parse_scenes_spec, write_scenes
from vlm_guard.eval.scenes.captions import brief_caption, detailed_caption, groups, list_caption
from vlm_guard.eval.scenes.categories import NAMES
from vlm_guard.eval.scenes.dataset import TRAINING_SEED
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import render
from vlm_guard.eval.training.caption_scores import mentions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "broken", "broken", 12, seed=5)


def test_pycocotools_reads_the_folder(folder):
    instances = COCO(folder / "annotations" / "instances_scenes.json")
    captions = COCO(folder / "annotations" / "captions_scenes.json")
    assert len(instances.getImgIds()) == 12 and len(instances.getCatIds()) == 80
    assert [category["name"] for category in instances.loadCats([1, 18, 90])] == ["person", "dog", "toothbrush"]
    for number in instances.getImgIds():
        entry = instances.loadImgs(number)[0]
        with Image.open(folder / "images" / entry["file_name"]) as picture:
            assert picture.size == (entry["width"], entry["height"]) == (96, 96)
            assert np.array_equal(np.asarray(picture), render("broken", 5, number - 1).pixels)
        annotations = instances.loadAnns(instances.getAnnIds(number))
        found = {instances.cats[item["category_id"]]["name"] for item in annotations}
        assert found == {NAMES[category] for category in render("broken", 5, number - 1).present}
        assert instances.annToMask(annotations[0]).sum() > 0
        assert len(captions.getAnnIds(number)) == 4


def test_side_file_knows_pool_and_partners(folder):
    side = json.loads((folder / "annotations" / "scenes.json").read_text())
    assert side["split"] == "broken" and side["seed"] == 5 and len(side["scenes"]) == 12
    for scene in side["scenes"]:
        assert set(scene["present_partners"]) <= set(scene["present"])
        assert set(scene["missing_partners"]) <= set(scene["pool"])
        assert not set(scene["missing_partners"]) & set(scene["present"])


def test_longer_folders_begin_with_the_shorter_ones(tmp_path, folder):
    longer = write_scenes(tmp_path / "longer", "broken", 14, seed=5)
    for name in ("000000000001.png", "000000000012.png"):
        assert (longer / "images" / name).read_bytes() == (folder / "images" / name).read_bytes()


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("vlm_guard.eval.scenes.dataset._side_record", fail)
    with pytest.raises(OSError, match="disk full"):
        write_scenes(tmp_path / "new", "common", 3)
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_explained(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ValueError, match="not an empty folder"):
        write_scenes(tmp_path, "common", 3)
    with pytest.raises(ValueError, match="the splits are"):
        write_scenes(tmp_path / "a", "test", 3)
    with pytest.raises(ValueError, match="at least 1"):
        write_scenes(tmp_path / "a", "common", 0)
    with pytest.raises(ValueError, match="training"):
        write_scenes(tmp_path / "a", "common", 3, seed=TRAINING_SEED)


def test_load_scenes_makes_once_and_keeps(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_GUARD_CACHE", str(tmp_path))
    made = load_scenes("common", 3)
    stamp = (made / "annotations" / "scenes.json").stat().st_mtime_ns
    assert made.is_relative_to(tmp_path)
    assert load_scenes("common", 3) == made
    assert (made / "annotations" / "scenes.json").stat().st_mtime_ns == stamp
    assert load_scenes("common", 3, seed=9) != made


def test_specs():
    assert (parse_scenes_spec("scenes:broken").split, parse_scenes_spec("scenes:broken").seed) == ("broken", 7)
    assert parse_scenes_spec("scenes:held-out:7741").seed == 7741
    for wrong in ("broken", "scenes:", "scenes:nowhere", "scenes:broken:x", "scenes:broken:-1", "scenes:a:1:2"):
        with pytest.raises(ValueError):
            parse_scenes_spec(wrong)


def test_contact_sheet(tmp_path, folder):
    path = contact_sheet(folder, tmp_path / "sheet.png", columns=4, rows=2)
    with Image.open(path) as picture:
        assert picture.width > 4 * 192 and len(picture.getcolors(1_000_000)) > 1000
    with pytest.raises(FileNotFoundError, match="no scenes folder"):
        contact_sheet(tmp_path, tmp_path / "other.png")


@pytest.mark.parametrize("split", ["common", "crowded"])
def test_captions_name_what_is_there_once(split):
    draws = Draws(4)
    for index in range(60):
        scene = render(split, 12, index)
        objects = list(scene.objects)
        for caption in (detailed_caption(draws, scene.scene_type, objects), list_caption(draws, objects)):
            named = mentions(caption)
            assert sorted(named) == sorted(scene.present), caption
        brief = mentions(brief_caption(draws, scene.scene_type, objects))
        assert len(brief) == len(set(brief)) and set(brief) <= scene.present


def test_groups_count_and_side():
    scene = next(s for s in (render("common", 2, k) for k in range(200)) if len(s.objects) > len(s.present))
    counted = groups(scene.objects)
    assert sum(group.count for group in counted) == len(scene.objects)
    assert any(group.count > 1 and group.phrase.split()[0] in ("two", "three") for group in counted)


def test_chair_reads_no_object_into_scene_names():
    chair = pytest.importorskip("vlm_guard.eval.tasks.chair.scoring")
    from vlm_guard.eval.scenes.world import SCENE_TYPES

    for scene in SCENE_TYPES:
        text = f"The image shows a {scene.name}. The scene looks like a typical {scene.name}."
        assert not chair.read_caption(text, "pattern").mentions, text
