"""Data that a task opens itself: pictures with questions instead of MSCOCO's annotations."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.datasets import EvaluationData, hash_file


def question_data(
    kind: str,
    place: Path,
    images: Mapping[int, Path],
    content: Any,
    *,
    count: int | None = None,
    files: Iterable[Path] = (),
    name: str | None = None,
) -> EvaluationData:
    """Pictures and what a task knows about them, as the runner takes them.

    Args:
        kind: what stands before the colon of `--data`.
        place: folder that the pictures and files lie in.
        images: file of every picture by a number, in the order they are asked.
        content: the task's own; it is handed back as `EvaluationData.content`.
        count: at most this many pictures, the first ones.
        files: files whose content decides the questions; results hold their hashes.
        name: how results call the data; by default kind and name of the folder.

    Raises:
        ValueError: `count` is not positive, or there is no picture.
        FileNotFoundError: not one of the pictures is there.
    """
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    read = list(files)
    if not images:
        raise ValueError(f"{', '.join(map(str, read)) or place} has no questions")
    chosen = dict(list(images.items())[:count])
    missing = sum(not path.is_file() for path in chosen.values())
    if missing == len(chosen):
        example = next(iter(chosen.values()))
        raise FileNotFoundError(f"none of the {missing} pictures is there, for example {example}")
    return EvaluationData(
        name=name if name is not None else f"{kind}:{place.resolve().name}",
        folder=place,
        images=chosen,
        objects={},
        captions={},
        selection="all pictures" if len(chosen) == len(images) else f"the first {len(chosen)} pictures",
        annotation_hashes={path.name: hash_file(path) for path in read},
        images_without_file=missing,
        kind=kind,
        content=content,
    )


def folder_of(kind: str, place: str, expected: str) -> Path:
    """The folder behind `--data KIND:FOLDER`.

    Args:
        kind: what stands before the colon.
        place: what stands behind it.
        expected: what the folder holds, for the message.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(place)
    if not place or not folder.is_dir():
        raise FileNotFoundError(f"--data {kind}:{place}: there is no such folder; it must hold {expected}")
    return folder
