"""MSCOCO annotation files, read and checked: every reference leads somewhere, every id is a whole number."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.untrusted.json_files import read_json, text_field, whole_number
from vlm_guard.untrusted.paths import relative_name
from vlm_guard.untrusted.printed_text import shown


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The content of an `instances_*.json` or `captions_*.json`.

    Attributes:
        path: the file.
        images: the file name of every image by its id, in the order of the file.
        categories: the name of every category by its id; empty in a captions file.
        records: the annotations; `image_id` is a whole number that `images` has.
    """

    path: Path
    images: dict[int, str]
    categories: dict[int, str]
    records: list[dict[str, Any]]

    def captions(self) -> Iterator[tuple[int, str]]:
        """Image id and text of every caption.

        Raises:
            ValueError: an annotation has no caption.
        """
        for number, record in enumerate(self.records, 1):
            if not isinstance(record.get("caption"), str):
                raise ValueError(f"{self.path}: annotation {number} has no caption (a captions file has)")
            yield record["image_id"], record["caption"]

    def instances(self) -> Iterator[tuple[int, str]]:
        """Image id and category name of every instance.

        Raises:
            ValueError: an annotation's category is not in the file.
        """
        for number, record in enumerate(self.records, 1):
            where = f"{self.path}: annotation {number}"
            if "category_id" not in record:
                raise ValueError(f"{where} has no known category; is it an instances file?")
            category = whole_number(record["category_id"], "category_id", where)
            if category not in self.categories:
                raise ValueError(f"{where} has no known category: {category} is not among the file's categories")
            yield record["image_id"], self.categories[category]


def read_annotations(path: str | Path) -> Annotations:
    """Read an annotation file, without the outlines of the instances.

    Ids may be whole numbers or text that is one ("139"); annotations need no id of their own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no MSCOCO annotation file, an id is missing, is no whole number or stands twice, an
            annotation is about an image that is not in the file, or a file name leads out of the folder.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no annotation file {path}")
    content = read_json(path, drop=("segmentation",))  # nine tenths of an instances file, and not used here
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{path} is no MSCOCO annotation file: it needs the lists 'images' and 'annotations'")
    images = {
        number: relative_name(text_field(record, "file_name", where, optional=True) or f"{number:012d}.jpg", where)
        for number, record, where in _numbered(content, "images", "image", path)
    }
    _refuse_shared_names(images, path)
    records = _records(content, "annotations", path)
    # Some captions files list categories of another kind; only annotations with a category look at them.
    has_categories = any("category_id" in record for record in records)
    categories = {
        number: text_field(record, "name", where)
        for number, record, where in (_numbered(content, "categories", "category", path) if has_categories else ())
    }
    seen: dict[int, int] = {}
    for place, record in enumerate(records, 1):
        where = f"{path}: annotation {place}"
        if record.get("id") is not None:
            _refuse_repeated(seen, whole_number(record["id"], "id", where), place, where)
        record["image_id"] = whole_number(record.get("image_id"), "image_id", where)
        if record["image_id"] not in images:
            raise ValueError(f"{where} is about image {record['image_id']}, which is not in the list 'images'")
    return Annotations(path=path, images=images, categories=categories, records=records)


def _records(content: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    records = content.get(name, [])
    if not isinstance(records, list):
        raise ValueError(f"{path}: {name!r} must be a list, not {shown(records)}")
    for place, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}: entry {place} of {name!r} must be a JSON object, not {shown(record)}")
    return records


def _numbered(content: dict[str, Any], name: str, one: str, path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The records of a list with their ids, which must differ, and what to call each of them."""
    seen: dict[int, int] = {}
    for place, record in enumerate(_records(content, name, path), 1):
        where = f"{path}: {one} {place}"
        number = whole_number(record.get("id"), "id", where)
        _refuse_repeated(seen, number, place, where)
        yield number, record, where


def _refuse_repeated(seen: dict[int, int], number: int, place: int, where: str) -> None:
    if number in seen:
        raise ValueError(f"{where} has id {number}, as number {seen[number]} has; every id may stand once")
    seen[number] = place


def _refuse_shared_names(images: dict[int, str], path: Path) -> None:
    if len(set(images.values())) == len(images):
        return
    owners: dict[str, int] = {}
    for number, name in images.items():
        if name in owners:
            raise ValueError(f"{path}: images {owners[name]} and {number} have the same file, {shown(name)}")
        owners[name] = number
