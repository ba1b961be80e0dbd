"""One run at a time in a folder: a lock that the operating system takes away when its process dies.

The lock is the operating system's own lock on the file `run.lock`, so nothing has to be cleaned up after a kill: the
file of a dead process is free and is taken over. What stands in the file only serves the message to the second one.
"""

import contextlib
import datetime
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process of this machine can work in `folder`; the folder is made if absent.

    Where the block leaves nothing behind in a folder that was made for the lock, the folder is taken away again.

    Raises:
        ValueError: another run, in this process or another, is at work in the folder; the message says which.
    """
    made = _make(folder)
    path = folder / LOCK_FILE
    file = _open_locked(path)
    try:
        yield
    finally:
        # Removed while it is still ours: nobody can lock a file that has just been put there by somebody else.
        path.unlink(missing_ok=True)
        os.close(file)
        for empty in made:
            with contextlib.suppress(OSError):  # not empty: the run's files are in it
                empty.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make the folder; those that had to be made, innermost first."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _open_locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(file):
                raise ValueError(_refusal(path))
            if _is(path, file):
                os.ftruncate(file, 0)
                os.write(file, json.dumps(_owner()).encode())
                return file
        except BaseException:
            os.close(file)
            raise
        # The run that held the lock ended in between and took its file along; this is a file that nobody else finds.
        os.close(file)


def _lock(file: int) -> bool:
    """Lock an open file for this process; False where somebody else has done so."""
    if sys.platform == "win32":
        import msvcrt

        try:
            # A byte far behind the text, so that others can still read who holds the lock.
            os.lseek(file, 2**20, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            os.lseek(file, 0, os.SEEK_SET)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(
            f"this file system has no locks ({error}): nothing keeps a second run out of the folder, so see to it that "
            "there is none",
            stacklevel=2,
        )
    return True


def _is(path: Path, file: int) -> bool:
    """Whether the open file is the one that stands under this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _owner() -> dict[str, str | int]:
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "machine": socket.gethostname(), "started": started}


def _refusal(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {owner['process']} on {owner['machine']}, since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written, or gone
        who = "another process"
    return (
        f"{path.parent} is being worked on by another run ({who}); wait until it has ended, stop it, or give another "
        "--out"
    )
