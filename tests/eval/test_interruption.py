"""Real processes: killed without warning, and two sharing the work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_coco import make_coco_folder

from vlm_guard.eval.run import command
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.resume import MethodFolder
from vlm_guard.eval.run.runner import evaluate, going_on_text
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.run.setup import open_data
from vlm_guard.eval.tasks.shared.registry import task_class

VOLATILE = ("seconds", "memory_bytes", "memory_kind", "turn")


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small", images=10)


def arguments(coco: Path, out: Path) -> list[str]:
    text = f"--data coco:{coco} --out {out} --device cpu --task chair --method none --method pai --batch-size 2"
    return [*text.split(), "--max-new-tokens", "24", "--resamples", "100", "--json"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def whole_command(coco: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "vlm_guard.eval", *arguments(coco, out)]


@pytest.fixture(scope="module")
def uninterrupted(coco, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    settings = RunSettings(
        data=f"coco:{coco}",
        device="cpu",
        tasks=["chair"],
        methods=["none", "pai"],
        batch_size=2,
        max_new_tokens=24,
        resamples=100,
    )
    evaluate(settings, out)
    return out


def stable(out: Path) -> dict[str, dict[str, dict]]:
    return {
        label: {
            key: {name: value for name, value in record.items() if name not in VOLATILE}
            for key, record in read_records(out / label / "samples.jsonl")[0].items()
        }
        for label in ("none", "pai")
    }


def same_numbers(first: Path, second: Path) -> bool:
    left, right = read_results(first), read_results(second)
    return all(
        one.estimates == other.estimates
        and one.difference_to_baseline == other.difference_to_baseline
        and one.chair == other.chair
        for one, other in zip(left.methods, right.methods, strict=True)
    )


@pytest.mark.slow
def test_killed_while_answering_it_loses_one_batch_and_ends_with_the_same_numbers(coco, uninterrupted, tmp_path):
    out = tmp_path / "killed"
    log = out / "pai" / "samples.jsonl"
    process = subprocess.Popen(
        whole_command(coco, out), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    limit = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < limit:
        if log.exists() and log.read_bytes().count(b"\n") >= 4:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait(60) == -signal.SIGKILL, process.stderr.read().decode()
    assert not (out / "results.json").exists()
    before = stable(out)
    assert 4 <= len(before["pai"]) < 10
    done = subprocess.run(whole_command(coco, out), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # Nothing but the results on stdout, and no progress where stderr is no terminal.
    assert json.loads(done.stdout)["baseline"] == "none"
    assert "\r" not in done.stderr and len(done.stderr.splitlines()) < 5, done.stderr
    after = stable(out)
    assert after == stable(uninterrupted)
    for label, records in before.items():
        assert all(after[label][key] == record for key, record in records.items())
    assert same_numbers(out, uninterrupted)
    assert len(read_results(out).methods[0].sessions) == 2


class OneOfTwo:
    """The group of a process that a launcher started with another one."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank, self.is_main = rank, rank == 0

    def close(self) -> None:
        """Nothing: in truth the process is gone before."""


@pytest.mark.parametrize(
    ("rank", "number", "code"), [(0, signal.SIGINT, 130), (1, signal.SIGINT, 130), (0, signal.SIGTERM, 143)]
)
def test_ctrl_c_in_several_processes_ends_each_at_once_and_one_says_what_is_kept(
    rank, number, code, tmp_path, capsys, monkeypatch
):
    def answering(settings, out, progress, group):
        progress.start(8, 0)
        try:
            for name, answers in (("rank-0", 3), ("rank-1", 2)):
                (out / "none").mkdir(parents=True, exist_ok=True)
                (out / "none" / f"samples.{name}.jsonl").write_text("{}\n" * answers + '{"torn')
            signal.raise_signal(number)
        finally:
            progress.stop()
            signal.raise_signal(number)  # the launcher passes it on to processes that have it already

    def leave(given: int) -> None:
        raise SystemExit(given)

    monkeypatch.setattr(command, "ProcessGroup", lambda cpu: OneOfTwo(rank))
    monkeypatch.setattr(command, "evaluate", answering)
    monkeypatch.setattr(command, "leave", leave)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            command.run_command(RunSettings(methods=["none"]), tmp_path, dry_run=False, as_json=False)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert left.value.code == code
    goes_on = "start the same command again to go on from there"
    message = f"interrupted: 5 of 8 answers are kept ({tmp_path}); {goes_on}\n"
    assert capsys.readouterr().err == ("" if rank else message)


def test_sigterm_in_one_process_says_the_same_and_the_run_is_told_from_a_finished_one(
    coco, tmp_path, capsys, monkeypatch
):
    def answering(settings, out, progress, group):
        progress.start(102, 32)
        folder = MethodFolder(out / "none", {"methods": []}, "none")
        folder.planned = {"chair": 102}
        folder.save_sessions()
        (out / "none" / "samples.jsonl").write_text("{}\n" * 32)
        signal.raise_signal(signal.SIGTERM)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(command, "evaluate", answering)
    monkeypatch.setattr(command, "leave", leave)
    before = signal.getsignal(signal.SIGTERM)
    try:
        settings = RunSettings(data=f"coco:{coco}", methods=["none"], tasks=["chair"])
        with pytest.raises(SystemExit) as left:
            command.run_command(settings, tmp_path, dry_run=False, as_json=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143
    kept = f"interrupted: 32 of 102 answers are kept ({tmp_path}); start the same command again to go on from there\n"
    assert capsys.readouterr().err == kept
    with pytest.raises(FileNotFoundError, match="32 of 102 answers; go on with the same command"):
        read_results(tmp_path)
    data = open_data(settings)
    tasks = {"chair": task_class("chair")(data)}
    assert going_on_text(settings, tmp_path, data, tasks) == (
        "going on: builtin on coco:small (10 pictures), chair with none: 10 of 10 answers are there already "
        f"({tmp_path})"
    )
    assert going_on_text(settings, tmp_path / "other", data, tasks) == ""


@pytest.mark.parametrize(("folder", "kind"), [("", "coco"), ("images", "folder")])
def test_a_folder_without_its_kind_is_asked_back(coco, folder, kind):
    place = coco / folder
    with pytest.raises(ValueError, match=f"did you mean {kind}:{place}[?]"):
        open_data(RunSettings(data=str(place)))


def launch(coco: Path, out: Path) -> list[str]:
    # "--multi_gpu" chooses torch's launcher; with "--cpu" accelerate starts a single process unless there is MPI.
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    options += " --main_process_port 0"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    return [*launcher, "-m", "vlm_guard.eval", *arguments(coco, out)]


@pytest.mark.slow
def test_two_processes_get_the_results_of_one_and_a_dead_shard_is_taken_over(coco, uninterrupted, tmp_path):
    # Left behind by a run of two processes whose second died: its shard, with a torn last line.
    out = tmp_path / "shared"
    records = read_records(uninterrupted / "none" / "samples.jsonl")[0]
    for label in ("none", "pai"):
        (out / label).mkdir(parents=True)
        (out / label / "run.json").write_bytes((uninterrupted / label / "run.json").read_bytes())
    marked = [{**records[key], "seconds": 123.0} for key in ("chair/3", "chair/4")]
    shard = out / "none" / "samples.rank-1.jsonl"
    shard.write_text("".join(json.dumps(record) + "\n" for record in marked) + '{"sample": "cha', encoding="utf-8")
    done = subprocess.run(launch(coco, out), env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["baseline"] == "none"
    assert stable(out) == stable(uninterrupted)
    assert list(stable(out)["pai"]) == [f"chair/{number}" for number in range(1, 11)]
    assert same_numbers(out, uninterrupted)
    assert not list(out.glob("*/samples.rank-*"))
    kept = read_records(out / "none" / "samples.jsonl")[0]
    assert [key for key, record in kept.items() if record["seconds"] == 123.0] == ["chair/3", "chair/4"]
    assert read_results(out).methods[0].sessions[-1]["processes"] == 2
