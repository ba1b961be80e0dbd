"""`pytest -m fast` selects what it says: files that exist, every method, one family, nothing slow."""

import subprocess
import sys
from pathlib import Path

from fast_selection import FAMILY, FILES

from vlm_guard.method.registry import method_names

ROOT = Path(__file__).resolve().parents[1]


def test_the_listed_files_exist():
    assert not [name for name in FILES if not (ROOT / "tests" / name).exists()]


def test_the_selection_has_every_method_on_one_family():
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "fast", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "tests/test_invariants.py"], capture_output=True, text=True, cwd=ROOT, timeout=300)
    cases = {line.partition("[")[2].rstrip("]") for line in done.stdout.splitlines() if "::" in line and "[" in line}
    assert {family for family, _, _ in (case.partition("-") for case in cases)} == {FAMILY}
    assert {method for _, _, method in (case.partition("-") for case in cases)} >= set(method_names()) - {"none"}
