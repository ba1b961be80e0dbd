"""The README's tables are current, and its commands are the ones that CI runs."""

from pathlib import Path

from vlm_guard.readme_tables import with_tables

ROOT = Path(__file__).resolve().parents[1]


def test_tables_are_current():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python -m vlm_guard.readme_tables README.md"


def test_ci_runs_the_readmes_test_command():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("python3 -m venv .venv")]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
