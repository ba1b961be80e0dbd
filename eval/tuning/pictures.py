"""The pictures to choose a method with: any folder of them, or a data set with annotations."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm_guard.eval.data.datasets import hash_file, hash_lines, open_dataset

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class TuningPictures:
    """Pictures, and what is in them where somebody knows.

    Attributes:
        name: of the folder or the data set, without the way to it.
        files: by number.
        objects: by number the MSCOCO categories that are in it, or None where nothing is annotated.
        mode: the CHAIR text mode of the annotations.
    """

    name: str
    files: Mapping[int, Path]
    objects: Mapping[int, list[str]] | None = None
    mode: str = "pattern"

    @property
    def fingerprint(self) -> str:
        """sha256 of the files' own sha256, in order."""
        return hash_lines(hash_file(path) for path in self.files.values())


def pictures_of_folder(folder: Path, count: int) -> TuningPictures:
    """Pictures of a folder and the folders in it, `count` of them drawn by a fixed seed where there are more.

    Raises:
        FileNotFoundError: there is no such folder. ValueError: no picture is in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; --images takes a folder with pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"no picture ({', '.join(SUFFIXES)}) is in {folder}; give a folder that has some")
    if len(found) > count:
        found = sorted(random.Random(0).sample(found, count))
    return TuningPictures(name=folder.resolve().name, files=dict(enumerate(found, 1)))


def pictures_of_data(data: str, count: int) -> TuningPictures:
    """The first pictures of a data set with annotations, which the choice itself does not see.

    Raises:
        ValueError, FileNotFoundError: there is no such data.
    """
    opened = open_dataset(data, count)
    files = dict(list(opened.images.items())[:count])
    return TuningPictures(name=opened.name, files=files, objects=opened.objects, mode=opened.mode or "pattern")


def chosen_pictures(folder: Path | None, data: str | None, count: int) -> TuningPictures:
    """Those of a folder or of a data set, whichever of the two is given.

    Raises:
        ValueError: both are given, or neither, or there are no such pictures. FileNotFoundError: no such folder.
    """
    if folder is not None and data is None:
        return pictures_of_folder(folder, count)
    if data is not None and folder is None:
        return pictures_of_data(data, count)
    raise ValueError("give pictures: either --images FOLDER, or --data scenes:SPLIT[:SEED] or coco:FOLDER")
