"""Pictures of one's own, without labels: a folder, or a list of files. Opened by `--data folder:PLACE`."""

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vlm_guard.eval.data.datasets import EvaluationData, hash_file, hash_lines
from vlm_guard.untrusted.json_files import read_records, text_field, whole_number
from vlm_guard.untrusted.paths import Inside, relative_name
from vlm_guard.untrusted.printed_text import shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif")
"""Endings of the files that a folder's listing takes for pictures, in any case."""

NAMES_HASH = "names of the pictures"
"""Under what the description of a folder without a list holds the hash of its file names."""

_LIST_FIELDS = ("image", "image_id")


def picture_names(folder: Path) -> list[str]:
    """The names of all pictures in a folder and below it, relative to it with forward slashes, sorted.

    Files are taken by their ending and not opened, so 20,000 of them take a fraction of a second. Hidden files and
    folders are passed over, and so are links to folders.

    Raises:
        ValueError: a picture is a link that leads out of the folder.
    """
    inside = Inside(folder)
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place)
        for name in files:
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                continue
            path = below / name
            if path.is_symlink():
                inside.check(path)
            names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def open_pictures(place: str, count: int | None = None) -> EvaluationData:
    """Open pictures without labels.

    Args:
        place: a folder; or a file that lists pictures which lie beside it or below its folder, JSON records with
            `image` (the file's name relative to the list) and, for all of them or none, `image_id`.
        count: at most this many, the first ones.

    Returns:
        The data. Its `content` says whether the pictures' numbers are ids that a list gives them; others are numbered
        from 1 in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder or list, or it names no picture that is there.
        ValueError: a record is not what it should be, or names a picture twice or outside of the list's folder.
    """
    path = Path(place)
    if path.is_dir():
        names = picture_names(path)
        if not names:
            raise FileNotFoundError(
                f"{path} has no picture in it or below it; files that end in {', '.join(SUFFIXES)} are taken"
            )
        folder, known = path, False
        images = {number: path / name for number, name in enumerate(names, 1)}
        hashes = {NAMES_HASH: hash_lines(names)}
    elif path.is_file():
        folder = path.parent
        images, known = _listed(path)
        hashes = {path.name: hash_file(path)}
    else:
        raise FileNotFoundError(f"there is no folder and no list {path}; give a folder of pictures, or a JSONL of them")
    chosen = dict(list(images.items())[:count])
    missing = sum(not file.is_file() for file in chosen.values())
    if missing == len(chosen):
        example = next(iter(chosen.values()))
        raise FileNotFoundError(f"{path}: none of the {missing} pictures is there, for example {example}")
    return EvaluationData(
        name=f"folder:{path.resolve().name}",
        folder=folder,
        images=chosen,
        objects={},
        captions={},
        selection="all pictures" if len(chosen) == len(images) else f"the first {len(chosen)} pictures",
        annotation_hashes=hashes,
        images_without_file=missing,
        kind="folder",
        content={"ids_are_given": known},
    )


def _listed(path: Path) -> tuple[dict[int, Path], bool]:
    """The pictures of a list by their ids, or by their place from 1 where it gives none; and whether it does."""
    names: dict[str, int | None] = {}
    inside = Inside(path.parent)
    for number, record in read_records(path):
        where = f"{path}: record {number}"
        check_fields(record, _LIST_FIELDS, where)
        name = picture_name(record, where, inside)
        if name in names:
            raise ValueError(f"{where} names the picture {shown(name)}, which stands in the list before")
        given = record.get("image_id")
        names[name] = None if given is None else whole_number(given, "image_id", where)
    if not names:
        raise ValueError(f"{path} lists no picture")
    ids = [given for given in names.values() if given is not None]
    if ids and len(ids) < len(names):
        raise ValueError(f"{path}: {len(ids)} of {len(names)} records have an image_id; give one to all or to none")
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"{path}: two pictures have the image_id {twice}")
    files = [path.parent / name for name in names]
    return dict(zip(ids or range(1, len(files) + 1), files)), bool(ids)


def picture_name(record: dict[str, Any], where: str, inside: Inside) -> str:
    """The name of a record's picture, which must stay inside a folder; the file need not be there.

    Raises:
        ValueError: there is no name, or it leads out of the folder.
    """
    name = relative_name(text_field(record, "image", where), where)
    name = PurePosixPath(name.replace("\\", "/")).as_posix()  # "./a.png" and "a.png" are one picture
    try:
        inside.check(inside.folder / name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return name


def check_fields(record: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """Refuse a field that is not known: a misspelt one would be passed over and its content lost.

    Raises:
        ValueError: there is one; the message says which are known.
    """
    unknown = next((name for name in record if name not in allowed), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, allowed, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: there is no field {shown(unknown)}{hint} (fields: {', '.join(allowed)})")
