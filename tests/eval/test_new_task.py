"""The task of docs/new-task.md: as it stands there, in a package of its own, found by its entry point."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_coco import make_coco_folder

from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results

GUIDE = Path(__file__).parents[2] / "docs" / "new-task.md"
LONGEST_TASK = 40


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The guide's file as an installed package: a folder on the path with its metadata beside it."""
    text = GUIDE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (entry,) = re.findall(r'```toml\n\[project.entry-points."vlm_guard.tasks"\]\n(.*?)```', text, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST_TASK
    folder = tmp_path_factory.mktemp("installed")
    (folder / "my_tasks").mkdir()
    (folder / "my_tasks" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "my_tasks" / "hedging.py").write_text(code, encoding="utf-8")
    metadata = folder / "my_tasks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tasks\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[vlm_guard.tasks]\n{entry.replace(chr(34), '')}", encoding="utf-8")
    return folder


def run(package: Path, *arguments: object) -> str:
    places = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "vlm_guard", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_guides_task_is_listed_and_described(package):
    listed = json.loads(run(package, "tasks", "--json"))
    assert "hedging" in [task["name"] for task in listed]
    described = json.loads(run(package, "tasks", "hedging", "--json"))
    assert described["help"] == "How often captions hedge."
    assert [item["option"] for item in described["settings"]] == [
        "--set hedging.max_new_tokens=",
        "--set hedging.words=",
    ]


@pytest.fixture(scope="module")
def evaluated(package, tmp_path_factory) -> Path:
    """The folder of a run of the guide's task beside another."""
    coco = make_coco_folder(tmp_path_factory.mktemp("data") / "small", images=3)
    out = tmp_path_factory.mktemp("evaluated") / "run"
    options = ("--method", "none", "--method", "pai", "--resamples", 100, "--set", "hedging.max_new_tokens=12")
    options += ("--set", "hedging.words=a,on", "--max-new-tokens", 6, "--out", out)
    run(package, "eval", "--device", "cpu", "--task", "hedging,chair", "--data", f"coco:{coco}", *options)
    return out


def test_the_guides_task_runs_beside_the_others(package, evaluated):
    out = evaluated
    table = run(package, "table", out)
    assert "| hedges ↓ |" in table and "CHAIR_i" in table and "How often captions hedge;" in table
    plain, guarded = read_results(out).methods
    records = read_records(out / "none" / "samples.jsonl")[0].values()
    texts = [record["text"].lower().split() for record in records if record["task"] == "hedging"]
    expected = sum(words.count(word) for words in texts for word in ("a", "on")) / 3
    assert expected > 0 and plain.estimates["hedging.rate"].value == pytest.approx(expected)
    assert {"low", "high", "verdict"} <= set(guarded.difference_to_baseline["hedging.rate"].model_dump())
    assert read_results(out).tasks["hedging"] == {"words": ["a", "on"], "max_new_tokens": 12}


def test_results_of_a_task_that_is_not_installed_say_so(evaluated):
    command = [sys.executable, "-m", "vlm_guard", "table", str(evaluated)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown task 'hedging'" in done.stderr and "is installed" in done.stderr
    assert "Traceback" not in done.stderr
