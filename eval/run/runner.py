"""The evaluation run: every method answers the same prompts about the same images, batch by batch.

Batches are cut once, before the work is shared out, and an unfinished batch is asked again as a whole. So the numbers
do not depend on how many processes worked or how often the run was killed. The methods take turns on every batch, in
rotating order, so that a machine that slows down or heats up slows all of them.
"""

import datetime
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.data.picture_marks import picture_marks
from vlm_guard.eval.run.batches import share
from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.earlier import EarlierMethod, earlier_methods
from vlm_guard.eval.run.engines.base import Job, JobAnswers
from vlm_guard.eval.run.environment import git_state
from vlm_guard.eval.run.finish import AnsweredMethod, summarise_run, with_earlier
from vlm_guard.eval.run.interruption import kept_answers
from vlm_guard.eval.run.lock import locked
from vlm_guard.eval.run.records import Record, SampleLog
from vlm_guard.eval.run.results import RunResults
from vlm_guard.eval.run.resume import MethodFolder
from vlm_guard.eval.run.settings import MethodSpec, RunSettings, method_directories
from vlm_guard.eval.run.setup import Evaluation, set_up
from vlm_guard.eval.tasks.base import Sample, Task
from vlm_guard.eval.tasks.shared.fair import MARGIN


class Progress(Protocol):
    """What a run tells about its progress."""

    def note(self, sentence: str) -> None:
        """Something to know at once, before the model is loaded."""

    def start(self, total: int, done: int) -> None:
        """The number of samples times methods, and how many are done already."""

    def advance(self, count: int, method: str) -> None:
        """So many more samples of a method are done."""

    def stop(self) -> None:
        """The run is over."""


@dataclass(kw_only=True)
class MethodRun:
    """One method in a run: its folder and records."""

    spec: MethodSpec
    folder: MethodFolder
    done: set[str] = field(default_factory=set)
    _log: SampleLog | None = None

    def open(self, path: Path) -> None:
        """Begin to write records there."""
        self._log = SampleLog(path)

    def write(self, records: list[dict[str, Any]]) -> None:
        """Write records down.

        Raises:
            RuntimeError: nothing is open.
        """
        if self._log is None:
            raise RuntimeError(f"the records of {self.spec.label} are not open")
        self._log.append(records)

    def close(self) -> None:
        """Write no more."""
        if self._log is not None:
            self._log.close()


def evaluate(
    settings: RunSettings, out: Path, *, progress: Progress | None = None, group: ProcessGroup | None = None
) -> RunResults | None:
    """Run an evaluation, or go on with one, and write `results.json`.

    Args:
        settings: what to run.
        out: folder of the run; every method has a folder in it.
        progress: told how far the run is.
        group: the processes that share the work.

    Returns:
        The results; None in processes other than the first.

    Raises:
        ValueError: a setting is wrong, `out` holds a run with other settings, or (with `strict`) an image is broken.
        FileNotFoundError: something that was named is missing.
    """
    group = group if group is not None else ProcessGroup(cpu=settings.device == "cpu")

    def opened(data: EvaluationData, tasks: dict[str, Task]) -> None:
        sentence = going_on_text(settings, out, data, tasks) if settings.resume and group.is_main else ""
        if sentence and progress is not None:
            progress.note(sentence)

    with _alone_in(out, group):
        return _evaluate(set_up(settings, group, opened), out, progress)


def _evaluate(run: Evaluation, out: Path, progress: Progress | None) -> RunResults | None:
    group = run.group
    methods, earlier = _open_folders(run, out)
    begin = time.perf_counter()
    session = _begin_session(run, methods)
    order = [sample.key for batch in run.batches for sample in batch.samples]
    for method in methods:
        method.folder.collect(group, order)
        method.done = set(method.folder.records)
        method.open(method.folder.shard_path(group))
    group.barrier()
    try:
        _answer_all(run, methods, progress)
    finally:
        if progress is not None:
            progress.stop()
        for method in methods:
            method.close()
    for method in methods:
        method.folder.collect(group, order)
    if not group.is_main:
        return None
    session["wall_seconds"] = round(time.perf_counter() - begin, 3)
    for method in methods:
        method.folder.save_sessions()
    results = summarise_run(run, with_earlier([_answered(method) for method in methods], earlier))
    results.save(out)
    return results


def going_on_text(settings: RunSettings, out: Path, data: EvaluationData, tasks: dict[str, Task]) -> str:
    """What is run and how many of its answers an earlier run has left in the folder; "" where there are none."""
    methods = settings.methods if settings.endpoint is None or "methods" in settings.model_fields_set else ["none"]
    kept = kept_answers(out, method_directories(methods))
    total = sum(len(task.samples()) for task in tasks.values()) * len(methods)
    if not kept:
        return ""
    model = settings.endpoint or settings.model
    return (
        f"going on: {model} on {data.name} ({len(data.images)} pictures), {', '.join(tasks)} with "
        f"{', '.join(methods)}: {min(kept, total)} of {total} answers are there already ({out})"
    )


@contextmanager
def _alone_in(out: Path, group: ProcessGroup) -> Iterator[None]:
    """Hold the lock of the run's folder; the processes of one run share the first one's.

    It is taken before the model is loaded: a second run shall not take the first one's memory before it is refused.
    """
    with ExitStack() as held:
        with group.main_first():
            if group.is_main:
                held.enter_context(locked(out))
        yield


def _open_folders(run: Evaluation, out: Path) -> tuple[list[MethodRun], list[EarlierMethod]]:
    """The methods of this run with what they have already answered, and the other methods in the folder."""
    methods = []
    earlier: list[EarlierMethod] = []
    with run.group.main_first():
        if run.group.is_main:
            earlier = earlier_methods(out, run.settings_of(0), [spec.directory for spec in run.specs])
        for index, spec in enumerate(run.specs):
            folder = MethodFolder(out / spec.directory, run.settings_of(index), spec.label)
            if run.group.is_main:
                folder.check(resume=run.settings.resume)
                folder.planned = run.plan()
            methods.append(MethodRun(spec=spec, folder=folder))
    return methods, earlier


def _answered(method: MethodRun) -> AnsweredMethod:
    return AnsweredMethod(
        label=method.spec.label,
        directory=method.spec.directory,
        described=method.folder.fingerprint["methods"],
        records=list(method.folder.records.values()),
        sessions=method.folder.sessions,
        damaged=method.folder.damaged,
    )


def _begin_session(run: Evaluation, methods: Sequence[MethodRun]) -> dict[str, Any]:
    """Note who works on these records from now on; `wall_seconds` stays None if the run is killed."""
    session = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processes": run.group.size,
        "image_folder": str(run.data.folder.resolve()),
        "picture_marks": picture_marks(run.data),
        "order_of_methods": [spec.label for spec in run.specs],
        **run.engine.surroundings(),
        "git": git_state(),
        "wall_seconds": None,
    }
    if run.group.is_main:
        for method in methods:
            method.folder.sessions.append(session)
            method.folder.save_sessions()
    return session


def _answer_all(run: Evaluation, methods: list[MethodRun], progress: Progress | None) -> None:
    if progress is not None and run.group.is_main:
        total = sum(len(batch.samples) for batch in run.batches) * len(methods)
        progress.start(total, sum(len(method.done) for method in methods))
    with closing(run.engine.answers(_jobs(run, methods))) as answered:
        for job, answers in answered:
            if run.settings.strict and answers.broken:
                raise ValueError(f"{next(iter(answers.broken.values()))} (--strict; without it the image is skipped)")
            method = methods[job.method]
            _write_down(run, method, job, answers)
            if progress is not None and run.group.is_main:
                progress.advance(len(job.batch.samples) * run.group.size, method.spec.label)


def _jobs(run: Evaluation, methods: Sequence[MethodRun]) -> list[Job]:
    """What this process has to ask: of each of its batches the methods that lack records, in rotating order."""
    keys = {batch.index: {sample.key for sample in batch.samples} for batch in run.batches}
    pending = [batch for batch in run.batches if any(keys[batch.index] - method.done for method in methods)]
    jobs = []
    for batch in share(pending, run.group.rank, run.group.size):
        for turn in range(len(methods)):
            place = (batch.place + turn) % len(methods)
            if not keys[batch.index] <= methods[place].done:
                jobs.append(Job(batch=batch, method=place, turn=turn))
    return jobs


def _write_down(run: Evaluation, method: MethodRun, job: Job, answers: JobAnswers) -> None:
    """Append the records of one job that are missing."""
    common = {sample.key: _identity(sample, run) for sample in job.batch.samples}
    records = [{**common[key], "error": reason} for key, reason in answers.broken.items()]
    for answer in answers.answers:
        sample = answer.sample
        records.append(
            {
                **common[sample.key],
                "prompt": sample.prompt,
                "text": answer.text,
                **({} if answer.yes_margin is None else {MARGIN: answer.yes_margin}),
                "tokens": answer.tokens,
                "finished": answer.finished,
                "score": {**job.batch.task.score(sample, answer.text), **answer.measured},
                "batch": job.batch.index,
                "turn": job.turn,
                "seconds": round(answer.seconds, 6),
                **({} if run.engine.timed == "generate" else {"timed": run.engine.timed}),
                "memory_bytes": answer.memory_bytes,
                "memory_kind": answer.memory_kind,
            }
        )
    new = [record for record in records if record["sample"] not in method.done]
    method.write(new)
    method.done.update(record["sample"] for record in new)


def _identity(sample: Sample, run: Evaluation) -> Record:
    file, folder = run.data.images[sample.image_id], run.data.folder
    image = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
    return {"sample": sample.key, "task": sample.task, "image_id": sample.image_id, "image": image}
