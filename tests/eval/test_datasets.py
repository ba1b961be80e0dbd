"""Opening data by name: which images, in which order, and what results say about them."""

import hashlib
import json
from pathlib import Path

import pytest
from small_coco import make_coco_folder

from vlm_guard.eval.data.datasets import open_dataset, read_image_ids


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small")


def test_a_count_takes_the_smallest_ids_and_says_so(coco):
    data = open_dataset(f"coco:{coco}", 3)
    assert list(data.images) == [1, 2, 3]
    assert data.selection == "the 3 images with the smallest ids"
    assert data.image_ids_hash == hashlib.sha256(b"1\n2\n3\n").hexdigest()
    assert data.name == "coco:small"
    whole = open_dataset(f"coco:{coco}", 99)
    assert (len(whole.images), whole.selection) == (6, "all images")
    assert whole.describe()["image_ids_sha256"] != data.describe()["image_ids_sha256"]


@pytest.mark.parametrize(
    "content",
    [
        "5\n2\n",
        "[5, 2]",
        "000000000005.jpg\n\nCOCO_val2014_000000000002.jpg\n",
        '{"image": "000000000005.jpg"}\n{"image_id": 2}\n',
    ],
)
def test_an_image_list_fixes_images_and_order(coco, tmp_path, content):
    path = tmp_path / "opera500.txt"
    path.write_text(content, encoding="utf-8")
    data = open_dataset(f"coco:{coco}", image_list=path)
    assert list(data.images) == [5, 2]
    assert data.selection == "image list opera500.txt"


def test_unknown_and_repeated_images_of_a_list_are_refused(coco, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([1, 77]), encoding="utf-8")
    with pytest.raises(ValueError, match="not in the annotations, for example 77"):
        open_dataset(f"coco:{coco}", image_list=path)
    path.write_text(json.dumps([1, 2, 1]), encoding="utf-8")
    with pytest.raises(ValueError, match="image 1 more than once"):
        read_image_ids(path)


def test_a_folder_with_part_of_the_photographs_uses_those(tmp_path):
    folder = make_coco_folder(tmp_path / "small")
    (folder / "images" / "000000000002.png").unlink()
    data = open_dataset(f"coco:{folder}")
    assert list(data.images) == [1, 3, 4, 5, 6]
    assert data.images_without_file == 1


def test_scenes_by_name_are_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_GUARD_CACHE", str(tmp_path / "first"))
    first = open_dataset("scenes:broken:7741", 3)
    monkeypatch.setenv("VLM_GUARD_CACHE", str(tmp_path / "second"))
    second = open_dataset("scenes:broken:7741", 3)
    assert first.describe() == second.describe()
    assert first.folder != second.folder
    assert len(first.images) == 3
    assert first.name == "scenes:broken:7741"
    assert open_dataset("scenes:broken", 3).describe()["annotations_sha256"] != first.annotation_hashes


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("scenes", None, "unknown data"),
        ("coco:", None, "unknown data"),
        ("vg:folder", None, "unknown data"),
        ("scenes:common", 0, "at least 1"),
        ("scenes:common:x", None, "whole number"),
    ],
)
def test_wrong_names_are_explained(name, count, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(name, count)
