"""`pytest -m fast` selects what it says: files that exist, every method, one family, nothing slow."""

from pathlib import Path

import pytest
from fast_selection import FAMILY, FILES

from vlm_guard.method.registry import method_names

ROOT = Path(__file__).resolve().parents[1]


def test_the_listed_files_exist():
    assert not [name for name in FILES if not (ROOT / "tests" / name).exists()]


class Collected:
    """A plugin that keeps what a run of pytest has selected."""

    items: list[pytest.Item]

    def pytest_collection_finish(self, session):
        self.items = list(session.items)


def test_the_selection_has_every_method_on_one_family(monkeypatch):
    """In this process, which has torch and the families already; pytest itself does the selecting."""
    monkeypatch.chdir(ROOT)
    found = Collected()
    # What belongs to the run around this one is left to it: its capture, cache, workers and fault handler.
    options = ["-q", "-s", "--collect-only", *(f"-pno:{name}" for name in ("cacheprovider", "xdist", "faulthandler"))]
    assert pytest.main([*options, "-m", "fast", "tests/test_invariants.py"], plugins=[found]) == 0
    cases = [item.callspec.params for item in found.items if hasattr(item, "callspec")]
    assert {case["zoo"] for case in cases} == {FAMILY}
    assert {case["method"] for case in cases} >= set(method_names()) - {"none"}
