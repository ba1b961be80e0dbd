"""Writing files so that nobody ever finds half of one."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content so that readers see the old or the new one, never a half, also after a power cut.

    Folders that are missing are made. Half of a surrogate pair, which a model or a file can bring along and which UTF-8
    cannot hold, is written as its escape; in JSON that means the same. Two writers of one file must not run at the same
    time.
    """
    content = text.encode("utf-8", errors="backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
