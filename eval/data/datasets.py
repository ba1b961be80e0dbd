"""Opening a data set by name: the built-in scenes, a folder in MSCOCO's format, or pictures of one's own."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.coco import coco_splits, image_id, read_coco
from vlm_guard.untrusted.json_files import parse_json, read_text

DEFAULT_COUNT = 500
KINDS = ("scenes", "coco", "folder")
_EXAMPLES = "'scenes:common', 'scenes:broken:7741' (split and seed), 'coco:FOLDER' or 'folder:FOLDER'"


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The images of an evaluation with their ground truth.

    Attributes:
        name: the name it was opened with, without a machine's folder names.
        folder: where the images and annotations lie.
        images: file of every chosen image by image id, in the order they are asked.
        objects: the objects of every image of the data set, in the order they are first seen.
        captions: the reference captions of every image of the data set.
        selection: how the images were chosen, in words.
        annotation_hashes: sha256 of every annotation file, by file name.
        images_without_file: annotated images that have no file in the folder (they are not asked).
        mode: CHAIR text mode the reference captions were read with; empty where there are none.
        kind: what stands before the colon of its name.
        content: what only the tasks of this kind of data know of it, such as their questions.
    """

    name: str
    folder: Path
    images: dict[int, Path]
    objects: dict[int, list[str]]
    captions: dict[int, list[str]]
    selection: str
    annotation_hashes: dict[str, str]
    images_without_file: int
    mode: str = ""
    kind: str = "coco"
    content: Any = None

    @property
    def image_ids_hash(self) -> str:
        """sha256 of the chosen image ids in order, one decimal number a line."""
        return hash_lines(self.images)

    def describe(self) -> dict[str, Any]:
        """What results say about the data; two runs are comparable only if all of it but the selection agrees."""
        return {
            "name": self.name,
            "images": len(self.images),
            "image_ids_sha256": self.image_ids_hash,
            "annotations_sha256": self.annotation_hashes,
            **({"text_mode": self.mode} if self.mode else {}),
        }


def hash_lines(values: Iterable[Any]) -> str:
    """sha256 of values written one a line."""
    return hashlib.sha256("".join(f"{value}\n" for value in values).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_image_ids(path: str | Path) -> list[int]:
    """Image ids from a file: a JSON list, or one id, file name or JSON record with `image_id` or `image` a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry names no image, or an image is listed twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no image list {path}")
    ids: dict[int, None] = {}
    for number, entry in _image_entries(path):
        where = f"{path}: entry {number}"
        value = entry.get("image_id", entry.get("image")) if isinstance(entry, dict) else entry
        try:
            found = image_id(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if found in ids:
            raise ValueError(f"{path} lists image {found} more than once, again in entry {number}")
        ids[found] = None
    if not ids:
        raise ValueError(f"{path} lists no image")
    return list(ids)


def _image_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """The entries of an image list with their place in the list or their line, from 1."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        listed = parse_json(text, str(path))
        yield from enumerate(listed, 1)
        return
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if entry:
            yield number, parse_json(entry, f"{path}: entry {number}") if entry.startswith("{") else entry


def _scenes_folder(name: str, count: int) -> Path:
    from vlm_guard.eval.scenes import load_scenes, parse_scenes_spec

    spec = parse_scenes_spec(name)
    return load_scenes(spec.split, count=count, seed=spec.seed)


def open_dataset(
    name: str,
    count: int | None = None,
    *,
    mode: str = "pattern",
    image_list: str | Path | None = None,
    split: str | None = None,
    only: Sequence[int] | None = None,
) -> EvaluationData:
    """Open a data set.

    Args:
        name: "scenes:SPLIT[:SEED]", "coco:FOLDER", or "folder:PLACE" for pictures without labels (a folder or a list).
        count: how many images. Scenes: the first `count` of the split (500 by default). A COCO folder: the images with
            the `count` smallest ids that have a file (all by default). Pictures without labels: the first by name, or
            of the list. Never a random or file-system order.
        mode: CHAIR text mode for the reference captions.
        image_list: file with the images to use, in this order (see `read_image_ids`), for a published subset.
        split: of a COCO folder, read only `instances_SPLIT.json` and `captions_SPLIT.json`; "all" reads every pair. A
            folder with several pairs needs one of them.
        only: without an image list, ids of the images to use, in this order: those that question files ask about. Ids
            that the annotations do not have are passed over.

    Raises:
        ValueError: the name is of no known kind, `count` is not positive, the image list names unknown images, or the
            folder has several splits and none is chosen.
        FileNotFoundError: the folder, its annotations or the image list is missing.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS or not rest:
        raise ValueError(f"unknown data {name!r}; give {_EXAMPLES}")
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    if kind == "folder":
        return _own_pictures(rest, count, image_list, split)
    listed = read_image_ids(image_list) if image_list is not None else None
    if kind == "scenes":
        if split is not None:
            raise ValueError("a split of scenes is part of the name: 'scenes:broken'")
        folder = _scenes_folder(name, max(listed) if listed else count or DEFAULT_COUNT)
    else:
        folder = Path(rest)
        split = _chosen_split(folder, split)
    read = read_coco(folder, mode, split)
    if only is not None and listed is None:
        listed = [number for number in only if number in read.objects]
    try:
        images, selection = _choose(read.images, read.objects, folder, listed, count)
    except ValueError as error:
        raise ValueError(f"{image_list}: {error}") from error
    if image_list is None and only is not None:
        selection = "images of the questions"
    shown = name if kind == "scenes" else f"coco:{folder.name}" + (f" {split}" if split else "")
    return EvaluationData(
        name=shown,
        folder=folder,
        images=images,
        objects=read.objects,
        captions=read.captions,
        selection=selection if image_list is None else f"{selection} {Path(image_list).name}",
        annotation_hashes={path.name: hash_file(path) for path in read.annotation_files},
        images_without_file=len(read.missing_images),
        mode=mode,
        kind=kind,
    )


def _chosen_split(folder: Path, split: str | None) -> str | None:
    """The split to read, None for the only one or all.

    Raises:
        ValueError: there are several and none is chosen.
    """
    if split == "all":
        return None
    splits = coco_splits(folder) if split is None else []
    if len(splits) > 1:
        raise ValueError(
            f"{folder} has the splits {', '.join(splits)}; say which with --split {splits[-1]}, or --split all: "
            "numbers of different splits must not be mixed up"
        )
    return split


def _own_pictures(place: str, count: int | None, image_list: str | Path | None, split: str | None) -> EvaluationData:
    from vlm_guard.eval.data.own_pictures import open_pictures

    for option, value in (("an image list", image_list), ("a split", split)):
        if value is not None:
            raise ValueError(
                f"{option} is for MSCOCO folders and scenes; list pictures in the file of folder:LIST.jsonl"
            )
    return open_pictures(place, count)


def _choose(
    images: dict[int, Path],
    objects: dict[int, list[str]],
    folder: Path,
    listed: Sequence[int] | None,
    count: int | None,
) -> tuple[dict[int, Path], str]:
    if listed is not None:
        unknown = [number for number in listed if number not in objects]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(listed)} listed images are not in the annotations, for example {unknown[0]}"
            )
        chosen = listed[:count]
        # A listed image without file stays in: the run records it as skipped instead of silently shrinking the list.
        return {number: images.get(number, folder / f"{number:012d}.jpg") for number in chosen}, "image list"
    if not images:
        raise FileNotFoundError(f"{folder} has annotations but none of their image files")
    ordered = sorted(images)[:count]
    selection = "all images" if len(ordered) == len(images) else f"the {len(ordered)} images with the smallest ids"
    return {number: images[number] for number in ordered}, selection
