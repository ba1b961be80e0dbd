"""How a folder of pictures is known again: by what is in some of its files, so that no other folder can pass for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlm_guard.eval.data.datasets import EvaluationData, hash_file
from vlm_guard.untrusted.paths import Inside, relative_name

MARKED = 8
"""So many pictures are marked, evenly spread; fewer only where there are no more."""


def picture_marks(data: EvaluationData) -> dict[str, str]:
    """The sha256 of some pictures by their names in the data's folder; empty where pictures lie outside of it."""
    files = [path for path in data.images.values() if path.is_file()]
    if not all(path.is_relative_to(data.folder) for path in files):
        return {}
    return {path.relative_to(data.folder).as_posix(): hash_file(path) for path in _spread(files)}


def has_marked_pictures(folder: Path, marks: Mapping[str, str], pictures: int) -> bool:
    """Whether a folder holds these very pictures.

    Args:
        folder: which may be any, and need not exist.
        marks: from `picture_marks`, perhaps from a file that somebody else made.
        pictures: how many pictures the run has; with fewer marks than such a run gets, no folder counts.

    Raises:
        ValueError: a name, or a link in the folder, leads out of it.
    """
    if not marks or len(marks) < min(MARKED, pictures):
        return False
    inside = Inside(folder)
    paths = {name: inside.check(folder / relative_name(name, "run.json")) for name in marks}
    return all(path.is_file() and hash_file(path) == marks[name] for name, path in paths.items())


def _spread(files: Sequence[Path]) -> list[Path]:
    if len(files) <= MARKED:
        return list(files)
    return [files[place * len(files) // MARKED] for place in range(MARKED)]
