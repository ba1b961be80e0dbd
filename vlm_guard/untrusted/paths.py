"""File names that stand in files: they must lead to a place inside the folder they belong to."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from vlm_guard.untrusted.printed_text import shown

LONGEST_PART = 255
LONGEST_NAME = 1024


def relative_name(name: str, where: str) -> str:
    """A name that stays in its folder by its letters alone: not absolute, no `..`, nothing a file system trips over.

    Args:
        name: as the file gives it; both kinds of slashes separate folders.
        where: what the error message begins with: the file and the record.

    Raises:
        ValueError: the name leads out of the folder or is no file name.
    """
    parts = name.replace("\\", "/").split("/")
    outside = parts[0] == "" or ":" in parts[0] or ".." in parts or name.startswith("~")
    if outside and name:
        raise ValueError(f"{where}: the file name {shown(name)} leads out of its folder; give one relative to it")
    controls = any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in name)
    too_long = len(name.encode("utf-8", "replace")) > LONGEST_NAME or any(
        len(part.encode("utf-8", "replace")) > LONGEST_PART for part in parts
    )
    if not name or parts[-1] in ("", ".") or controls or too_long:
        raise ValueError(f"{where}: {shown(name)} is no file name")
    return name


class Inside:
    """Whether files lie in a folder also after every link on the way is followed.

    Args:
        folder: the folder; it may itself be reached by a link.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = os.path.realpath(folder)
        self._real_folder = cache(os.path.realpath)  # thousands of pictures share a folder

    def holds(self, path: Path) -> bool:
        """Whether `path`, which need not exist, lies in the folder."""
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(self._real_folder(path.parent), path.name)  # noqa: PTH118
        return real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep)

    def check(self, path: Path) -> Path:
        """The path itself.

        Raises:
            ValueError: a link leads out of the folder.
        """
        if not self.holds(path):
            raise ValueError(
                f"{path} leads out of {self.folder} by a link; put the files themselves there, or name the folder "
                "they are in"
            )
        return path

    def first(self, candidates: Iterable[Path]) -> Path | None:
        """The first of the candidates that is a file; None without any.

        Raises:
            ValueError: that file is reached by a link out of the folder.
        """
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        return None if found is None else self.check(found)
