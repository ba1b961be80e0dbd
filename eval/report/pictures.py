"""The pictures of a results page: where they lie, and how they get into the page."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.datasets import hash_file, hash_lines
from vlm_guard.eval.data.own_pictures import NAMES_HASH, picture_names
from vlm_guard.eval.data.picture_marks import has_marked_pictures
from vlm_guard.eval.report.compare import Comparison
from vlm_guard.eval.run.results import RUN_FILE
from vlm_guard.untrusted.json_files import read_json
from vlm_guard.untrusted.paths import Inside, relative_name
from vlm_guard.untrusted.picture_reader import read_picture

THUMBNAIL_SIDE = 288
_JPEG_QUALITY = 78


def thumbnail(path: Path, side: int = THUMBNAIL_SIDE) -> str:
    """An image as a small JPEG in a data address; its longer side has at most `side` pixels.

    Raises:
        OSError: the file is missing or damaged.
    """
    content = io.BytesIO()
    read_picture(path, longest=side).save(content, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def picture_in(folder: Path | None, name: str, where: str) -> str | None:
    """The thumbnail of a record's picture, or None where the folder does not have it.

    Args:
        folder: the data set's folder.
        name: the picture's name as the record gives it.
        where: what the error message begins with.

    Raises:
        ValueError: the name, or a link, leads out of the folder: records may come from anybody, and a page that shows
            a picture of another folder gives it away.
    """
    if folder is None:
        return None
    path = Inside(folder).check(folder / relative_name(name, where))
    try:
        return thumbnail(path)
    except OSError:
        return None


def image_folder(comparison: Comparison) -> Path | None:
    """Where the pictures lay when a run was made, if that data set is still there.

    The folder stands in the runs' `run.json` only: results.json is made to be passed on and names no folder of a
    machine. A run from elsewhere could name any folder, so it counts only if it has the
    annotation files of the run, or for pictures without labels files of the same names, or where annotations or
    questions lie elsewhere (`vlm-guard ask --images`) the very pictures that the run has noted.

    Raises:
        ValueError: a `run.json` is damaged.
    """
    hashes = comparison.results.data.get("annotations_sha256") or {}
    answered = (record for records in comparison.records.values() for record in records if "error" not in record)
    pictures = len({record["image"] for record in answered})
    for method in comparison.results.methods:
        path = comparison.folders[method.label] / method.directory / RUN_FILE
        if not path.is_file():
            continue
        for folder, marks in _session_folders(read_json(path), path):
            if _has_annotations(folder, hashes) or _has_pictures(folder, marks, pictures):
                return folder
    return None


def _session_folders(content: Any, path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The image folders of a run's sessions with the pictures they are known by, the last first."""
    sessions = content.get("sessions", []) if isinstance(content, dict) else None
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        raise ValueError(f"{path} is damaged: 'sessions' must be a list of JSON objects")
    for number, session in reversed(list(enumerate(sessions, 1))):
        folder = session.get("image_folder")
        if folder is not None and (not isinstance(folder, str) or "\0" in folder):
            raise ValueError(f"{path} is damaged: 'image_folder' of session {number} must be a folder's name")
        marks = session.get("picture_marks", {})
        if not isinstance(marks, dict) or not all(isinstance(value, str) for value in marks.values()):
            raise ValueError(f"{path} is damaged: 'picture_marks' of session {number} must be hashes by picture")
        if folder:
            yield Path(folder), marks


def _has_pictures(folder: Path, marks: dict[str, str], pictures: int) -> bool:
    try:
        return has_marked_pictures(folder, marks, pictures)
    except (OSError, ValueError):  # a name that this file system cannot have, or that leads elsewhere
        return False


def _has_annotations(folder: Path, hashes: dict[str, str]) -> bool:
    try:
        if set(hashes) == {NAMES_HASH}:  # pictures without labels: the folder must hold files of the same names
            return folder.is_dir() and hash_lines(picture_names(folder)) == hashes[NAMES_HASH]
        found = {
            path.name: path
            for place in (folder, folder / "annotations")
            for path in (place / name for name in hashes)
            if path.is_file()
        }
        return bool(hashes) and all(name in found and hash_file(found[name]) == value for name, value in hashes.items())
    except (OSError, ValueError):  # a name that this file system cannot have
        return False
