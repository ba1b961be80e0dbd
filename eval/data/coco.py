"""Reading MSCOCO: image files, captions, and the objects of every image as CHAIR and POPE count them."""

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.annotations import Annotations, read_annotations
from vlm_guard.eval.tasks.chair.scoring import ChairMode, check_mode, read_caption
from vlm_guard.eval.tasks.chair.text import object_vocabulary
from vlm_guard.untrusted.json_files import as_whole_number, read_json
from vlm_guard.untrusted.paths import Inside
from vlm_guard.untrusted.printed_text import SHOWN_CHARACTERS, one_line, shown

_IMAGE_FILE = re.compile(r"(?:\w+_)?([0-9]{1,18})")
_FRACTION = re.compile(r"[+-]?[0-9.]+")


def image_id(value: Any) -> int:
    """The MSCOCO id of an image given as id or file name.

    Accepts 139, 139.0, "139", "000000000139.jpg" and "COCO_val2014_000000000139.jpg", with or without folders.

    Raises:
        ValueError: the value names no image id.
    """
    number = as_whole_number(value)
    if number is None and isinstance(value, str) and not _FRACTION.fullmatch(value.strip()):
        name = value.replace("\\", "/").rpartition("/")[2]
        match = _IMAGE_FILE.fullmatch(name.partition(".")[0])
        number = int(match.group(1)) if match else None
    if number is None:
        raise ValueError(
            f"{shown(value)} names no image; give an id such as 139 or a file name such as 000000000139.jpg or "
            "COCO_val2014_000000000139.jpg"
        )
    return number


@dataclass(frozen=True, kw_only=True)
class CocoFolder:
    """A folder in MSCOCO's format, read.

    Attributes:
        folder: the folder.
        images: the file of every image that is there, by image id.
        missing_images: ids of images in the annotations whose file is not in the folder.
        captions: the reference captions of every image.
        objects: the objects of every image, in the order they are first seen: instances, then captions.
        annotation_files: the files that were read, instances and captions in turn.
        mode: CHAIR text mode the captions were read with.
    """

    folder: Path
    images: dict[int, Path]
    missing_images: tuple[int, ...]
    captions: dict[int, list[str]]
    objects: dict[int, list[str]]
    annotation_files: tuple[Path, ...]
    mode: str


def _paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _instance_objects(annotations: Annotations) -> Iterator[tuple[int, str]]:
    known = frozenset(object_vocabulary().categories)
    if unknown := sorted(set(annotations.categories.values()) - known):
        raise ValueError(
            f"{annotations.path} has categories that are none of MSCOCO's 80: "
            f"{one_line(', '.join(unknown[:5]), SHOWN_CHARACTERS)}; CHAIR and POPE are defined on those"
        )
    return annotations.instances()


def _collect(
    instances: Iterable[Path], captions: Iterable[Path], mode: ChairMode
) -> tuple[dict[int, str], dict[int, list[str]], dict[int, dict[str, None]]]:
    """File names, captions and objects (an ordered set each) of all images in the given annotation files."""
    file_names: dict[int, str] = {}
    sentences: dict[int, list[str]] = {}
    objects: dict[int, dict[str, None]] = {}

    def read(path: Path) -> Annotations:
        annotations = read_annotations(path)
        for number, name in annotations.images.items():
            file_names.setdefault(number, name)
            objects.setdefault(number, {})
        return annotations

    for path in instances:
        for number, category in _instance_objects(read(path)):
            objects[number][category] = None
    for path in captions:
        for number, caption in read(path).captions():
            sentences.setdefault(number, []).append(caption)
            found = objects[number]
            for mention in read_caption(caption, mode).mentions:
                found[mention.node] = None
    return file_names, sentences, objects


def object_sets(
    instances: str | Path | Sequence[str | Path],
    captions: str | Path | Sequence[str | Path],
    mode: str = "pattern",
) -> dict[int, list[str]]:
    """The objects of every image: annotated instances and objects its reference captions mention.

    Args:
        instances: `instances_*.json`, one or several.
        captions: `captions_*.json` of the same images, one or several.
        mode: CHAIR text mode for the captions; 1,741 of MSCOCO's images get other objects in the other mode.

    Returns:
        For every image of the files (also those without any object) its objects in the order they are first seen:
        instances in the order of the annotations, then mentions in the order of the captions.

    Raises:
        FileNotFoundError: a file is missing, or NLTK's data is for mode `wordnet`.
        ValueError: a file is not what it should be, or the mode is unknown.
    """
    _, _, objects = _collect(_paths(instances), _paths(captions), check_mode(mode))
    return {number: list(found) for number, found in objects.items()}


def read_object_sets(path: str | Path) -> dict[int, list[str]]:
    """Object sets from a JSON file, `{"139": ["chair", ...], ...}`, which may be gzipped (name ends in .gz).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content is not an object of lists of names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of object sets {path}")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold one JSON object such as {{"139": ["chair", "dining table"]}}')
    found: dict[int, list[str]] = {}
    for key, names in content.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: the entry {shown(key)} must be a list of object names, not {shown(names)}")
        try:
            number = image_id(key)
        except ValueError as error:
            raise ValueError(f"{path}: the entry {shown(key)}: {error}") from error
        if number in found:
            raise ValueError(f"{path}: the entry {shown(key)} is about image {number}, which has an entry before")
        found[number] = names
    return found


def write_object_sets(objects: Mapping[int, Iterable[str]], path: str | Path) -> None:
    """Write object sets as the JSON that `read_object_sets` reads (gzipped if the name ends in .gz)."""
    content = json.dumps({str(number): list(names) for number, names in sorted(objects.items())}).encode()
    path = Path(path)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def coco_splits(folder: str | Path) -> list[str]:
    """The splits a folder in MSCOCO's format has both annotation files of, sorted; none where there is no folder."""
    instances, captions = _annotation_files(Path(folder))
    return sorted(name for name in instances if name in captions)


def require_annotations(folder: str | Path, split: str | None) -> None:
    """Check that a folder in MSCOCO's format has the annotation files of a split, without reading them.

    Args:
        folder: the folder.
        split: such as "val2014"; "all" or None for every pair.

    Raises:
        FileNotFoundError: the folder or a file is missing.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    _annotation_pairs(Path(folder), None if split == "all" else split)


def _annotation_files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Instances and captions files by split, in the folder's `annotations` folder or else in itself."""
    found: dict[str, dict[str, Path]] = {}
    for place in (folder / "annotations", folder):
        found = {
            kind: {path.stem.removeprefix(kind).strip("_"): path for path in sorted(place.glob(f"{kind}*.json"))}
            for kind in ("instances", "captions")
        }
        if found["instances"] or found["captions"]:
            break
    return found["instances"], found["captions"]


def _annotation_pairs(folder: Path, split: str | None) -> list[tuple[Path, Path]]:
    """The pairs of instances and captions files in the folder or in its `annotations` folder."""
    instances, captions = _annotation_files(folder)
    if split is not None:
        instances = {name: path for name, path in instances.items() if name == split}
        captions = {name: path for name, path in captions.items() if name == split}
    elif len(instances) == len(captions) == 1:
        return [(next(iter(instances.values())), next(iter(captions.values())))]
    if not instances or instances.keys() != captions.keys():
        have = ", ".join(path.name for path in sorted([*instances.values(), *captions.values()])) or "none"
        raise FileNotFoundError(
            f"{folder} needs MSCOCO annotations in pairs, instances_X.json with captions_X.json, in itself or in "
            f"its folder 'annotations'{f', with X = {split}' if split else ''}; found: {have}"
        )
    return [(instances[name], captions[name]) for name in sorted(instances)]


def _locate_images(folder: Path, file_names: Mapping[int, str], splits: Sequence[str]) -> dict[int, Path]:
    """The file of every image, looked for where MSCOCO's archives unpack to, then anywhere below the folder."""
    images_folder = folder / "images"
    places = [folder / split for split in splits] + [images_folder / split for split in splits]
    places = [place for place in [*places, images_folder, folder] if place.is_dir()]
    inside = Inside(folder)
    found: dict[int, Path] = {}
    rest: dict[str, list[int]] = {}
    for number, name in file_names.items():
        if path := inside.first(place / name for place in places):
            found[number] = path
        else:
            rest.setdefault(Path(name).name, []).append(number)
    if rest:
        for path in sorted(folder.rglob("*")):
            numbers = rest.get(path.name, ())
            # A name that several images share says nothing about which of them lies elsewhere.
            if len(numbers) == 1 and path.is_file():
                found.setdefault(numbers[0], inside.check(path))
    return {number: found[number] for number in file_names if number in found}


def read_coco(folder: str | Path, mode: str = "pattern", split: str | None = None) -> CocoFolder:
    """Read a folder in MSCOCO's format: image files, captions, objects.

    Annotations are looked for in the folder's `annotations` folder, then in the folder itself, as pairs
    `instances_X.json` and `captions_X.json` (a single pair need not share X). Image files may lie in `X/`,
    `images/X/`, `images/`, the folder itself or anywhere below it.

    Args:
        folder: the folder.
        mode: CHAIR text mode for the reference captions.
        split: read only the pair with this X, for example "val2014"; all pairs by default.

    Raises:
        FileNotFoundError: the folder or one half of an annotation pair is missing.
        ValueError: an annotation file is not what it should be, or the mode is unknown.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder with MSCOCO's images and annotations")
    pairs = _annotation_pairs(folder, split)
    instances, captions = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    file_names, sentences, objects = _collect(instances, captions, check_mode(mode))
    splits = [path.stem.removeprefix("instances").strip("_") for path in instances]
    images = _locate_images(folder, file_names, [name for name in splits if name])
    return CocoFolder(
        folder=folder,
        images=images,
        missing_images=tuple(number for number in file_names if number not in images),
        captions=sentences,
        objects={number: list(found) for number, found in objects.items()},
        annotation_files=tuple(path for pair in pairs for path in pair),
        mode=mode,
    )
