"""mypy over the one package that users import: ``python tests/check_types.py``.

The top-level folders methods/, kernels/, eval/ and demo/ are installed as sub-packages of vlm_guard. A checker that is
pointed at the checkout finds none of them there, takes every import across rooms for unknown and stays silent. So this
makes a temporary folder in which ``vlm_guard/`` is one package (of links to the files of the checkout) and checks that.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "vlm_guard"
MAPPED = ("methods", "kernels", "eval", "demo")
_ERROR = re.compile(r"^(?P<file>[^:]+):\d+(:\d+)?: error: ")


def link_package(folder: Path) -> Path:
    """Make ``folder/vlm_guard`` out of links: all that is in vlm_guard/, and the mapped top-level folders."""
    package = folder / PACKAGE
    package.mkdir()
    for entry in (ROOT / PACKAGE).iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for name in MAPPED:
        (package / name).symlink_to(ROOT / name)
    return package


def check() -> tuple[int, str]:
    """Run mypy with the settings of pyproject.toml over the whole package; (exit code, what it printed)."""
    with tempfile.TemporaryDirectory() as name:
        link_package(Path(name))
        return run_mypy(Path(name), "--package", PACKAGE)


def run_mypy(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run mypy in a folder that `link_package` has filled; (exit code, what it printed).

    The cache lies in the checkout, so that a second run takes seconds.
    """
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def errors_of(printed: str) -> list[str]:
    """The lines of mypy's output that are errors, without notes."""
    return [line for line in printed.splitlines() if _ERROR.match(line)]


def room_of(line: str) -> str:
    """The room of an error: the folder in vlm_guard/ it lies in, or the file directly in vlm_guard/."""
    return line.partition(":")[0].split("/")[1].removesuffix(".py")


def main() -> int:
    """Print what mypy says and how many errors each room has; mypy's exit code."""
    code, printed = check()
    print(printed, end="")
    errors = errors_of(printed)
    print(f"{len(errors)} errors in {PACKAGE}", dict(sorted(Counter(map(room_of, errors)).items())))
    return code


if __name__ == "__main__":
    sys.exit(main())
