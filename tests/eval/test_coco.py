"""Reading folders in MSCOCO's format, in every layout, and what is said about broken ones."""

import gzip
import json

import pytest
from PIL import Image

from vlm_guard.eval.data.coco import image_id, object_sets, read_coco, read_object_sets, write_object_sets

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 62, "name": "chair"}]
IMAGES = [{"id": 7, "file_name": "000000000007.jpg"}, {"id": 9, "file_name": "000000000009.jpg"}]
INSTANCES = {
    "images": IMAGES,
    "categories": CATEGORIES,
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 62, "segmentation": [[0.5, 1.5, 2.5, 3.5, 4.5, 5.5]]},
        {"id": 2, "image_id": 7, "category_id": 1},
        {"id": 3, "image_id": 7, "category_id": 62},
    ],
}
CAPTIONS = {
    "images": IMAGES,
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "A puppy and a man on a stool."},
        {"id": 2, "image_id": 9, "caption": "Nothing to see."},
    ],
}


def make_folder(folder, annotations="annotations", images="val2014", suffix="_val2014", captions=CAPTIONS):
    (folder / annotations).mkdir(parents=True, exist_ok=True)
    (folder / images).mkdir(parents=True, exist_ok=True)
    (folder / annotations / f"instances{suffix}.json").write_text(json.dumps(INSTANCES))
    (folder / annotations / f"captions{suffix}.json").write_text(json.dumps(captions))
    for image in IMAGES:
        Image.new("RGB", (4, 4)).save(folder / images / image["file_name"])
    return folder


@pytest.mark.parametrize(
    "value",
    [139, "139", "000000000139.jpg", "COCO_val2014_000000000139.jpg", "val2017/000000000139.jpg", "C:\\a\\139.png"],
)
def test_image_ids(value):
    assert image_id(value) == 139


@pytest.mark.parametrize("value", ["dog.jpg", "", "12-13.jpg", True, None, 1.5])
def test_what_is_no_image_id(value):
    with pytest.raises(ValueError, match="names no image"):
        image_id(value)


@pytest.mark.parametrize("annotations", ["annotations", "."])
@pytest.mark.parametrize("images", ["val2014", "images/val2014", "images", ".", "deep/er/down"])
@pytest.mark.parametrize("suffix", ["_val2014", ""])
def test_layouts(tmp_path, annotations, images, suffix):
    folder = read_coco(make_folder(tmp_path, annotations, images, suffix))
    assert {number: path.name for number, path in folder.images.items()} == {
        image["id"]: image["file_name"] for image in IMAGES
    }
    assert all(path.is_file() for path in folder.images.values())
    assert folder.objects == {7: ["chair", "person", "dog"], 9: []}
    assert folder.captions[9] == ["Nothing to see."]
    assert folder.missing_images == ()


def test_a_single_pair_need_not_share_its_name(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "annotations" / "captions_val2014.json").rename(tmp_path / "annotations" / "captions_mine.json")
    assert read_coco(tmp_path).objects[7] == ["chair", "person", "dog"]


def test_several_splits_are_joined_or_chosen(tmp_path):
    make_folder(tmp_path)
    other = json.loads(json.dumps(INSTANCES).replace("000000000007", "000000000011"))
    other["images"] = [{"id": 11, "file_name": "000000000011.jpg"}]
    other["annotations"] = [{"id": 5, "image_id": 11, "category_id": 18}]
    (tmp_path / "annotations" / "instances_train2014.json").write_text(json.dumps(other))
    (tmp_path / "annotations" / "captions_train2014.json").write_text(
        json.dumps({"images": other["images"], "annotations": []})
    )
    both = read_coco(tmp_path)
    assert set(both.objects) == {7, 9, 11}
    assert both.missing_images == (11,)
    assert set(read_coco(tmp_path, split="train2014").objects) == {11}
    with pytest.raises(FileNotFoundError, match="with X = test"):
        read_coco(tmp_path, split="test")


def test_captions_files_that_list_categories_can_be_read(tmp_path):
    make_folder(tmp_path, captions={**CAPTIONS, "categories": CATEGORIES})
    assert read_coco(tmp_path).objects[7] == ["chair", "person", "dog"]


def test_a_missing_half_is_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "annotations" / "captions_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"in pairs.*found: instances_val2014\.json"):
        read_coco(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_coco(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "no MSCOCO annotation file"),
        (json.dumps(CAPTIONS), "has no known category"),
        (json.dumps({**INSTANCES, "categories": [{"id": 1, "name": "unicorn"}]}), "none of MSCOCO's 80: unicorn"),
    ],
)
def test_broken_instances_are_explained(tmp_path, content, message):
    make_folder(tmp_path)
    (tmp_path / "annotations" / "instances_val2014.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_coco(tmp_path)


def test_instances_given_as_captions_are_explained(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "annotations" / "instances_val2014.json"
    with pytest.raises(ValueError, match="has no caption"):
        object_sets(path, path)


def test_nothing_is_printed(tmp_path, capsys):
    read_coco(make_folder(tmp_path))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["objects.json", "objects.json.gz"])
def test_object_sets_survive_a_file(tmp_path, name):
    write_object_sets({9: ["dog"], 7: ["chair", "person"]}, tmp_path / name)
    assert read_object_sets(tmp_path / name) == {7: ["chair", "person"], 9: ["dog"]}


def test_object_sets_are_checked(tmp_path):
    path = tmp_path / "objects.json"
    path.write_text('{"7": "dog"}')
    with pytest.raises(ValueError, match="'7' must be a list"):
        read_object_sets(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="one JSON object"):
        read_object_sets(path)
    with pytest.raises(FileNotFoundError):
        read_object_sets(tmp_path / "none.json")
    packed = tmp_path / "objects.json.gz"
    packed.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="no valid JSON"):
        read_object_sets(packed)
    packed.write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(ValueError, match="no valid JSON"):
        read_object_sets(packed)
