"""The evaluation run: every method answers the same prompts about the same images, batch by batch.

Batches are cut once, before the work is shared out, and an unfinished batch is asked again as a whole. So the numbers
do not depend on how many processes worked or how often the run was killed. The methods take turns on every batch, in
rotating order, so that a machine that slows down or heats up slows all of them.
"""

import datetime
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlm_guard.eval.data.picture_marks import picture_marks
from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.earlier import EarlierMethod, earlier_methods
from vlm_guard.eval.run.environment import all_versions, git_state, hardware
from vlm_guard.eval.run.finish import AnsweredMethod, summarise_run, with_earlier
from vlm_guard.eval.run.first_token import yes_no_margin
from vlm_guard.eval.run.generation import PreparedBatch, generate_batch, prepare_batch
from vlm_guard.eval.run.lock import locked
from vlm_guard.eval.run.records import Record, SampleLog
from vlm_guard.eval.run.results import RunResults
from vlm_guard.eval.run.resume import MethodFolder
from vlm_guard.eval.run.settings import MethodSpec, RunSettings
from vlm_guard.eval.run.setup import Batch, Evaluation, set_up
from vlm_guard.eval.tasks.base import Sample
from vlm_guard.eval.tasks.shared.fair import MARGIN
from vlm_guard.guard import Guard

# Timing starts after one untimed answer of this many tokens, which pays for first-call set-up.
_WARM_UP_TOKENS = 2


class Progress(Protocol):
    """What a run tells about its progress."""

    def start(self, total: int, done: int) -> None:
        """The number of samples times methods, and how many are done already."""

    def advance(self, count: int, method: str) -> None:
        """So many more samples of a method are done."""

    def stop(self) -> None:
        """The run is over."""


@dataclass(kw_only=True)
class MethodRun:
    """One method in a run: its guard (attached only while it answers), folder and records."""

    spec: MethodSpec
    guard: Guard
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
    with _alone_in(out, group):
        return _evaluate(set_up(settings, group), out, progress)


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
        for index, (spec, guard) in enumerate(zip(run.specs, run.guards)):
            folder = MethodFolder(out / spec.directory, run.settings_of(index), spec.label)
            if run.group.is_main:
                folder.check(resume=run.settings.resume)
            methods.append(MethodRun(spec=spec, guard=guard, folder=folder))
    return methods, earlier


def _answered(method: MethodRun) -> AnsweredMethod:
    return AnsweredMethod(
        label=method.spec.label,
        directory=method.spec.directory,
        described=[bound.method.describe() for bound in method.guard.methods],
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
        "versions": all_versions(),
        "hardware": hardware(),
        "git": git_state(),
        "wall_seconds": None,
    }
    if run.group.is_main:
        for method in methods:
            method.folder.sessions.append(session)
            method.folder.save_sessions()
    return session


def _answer_all(run: Evaluation, methods: list[MethodRun], progress: Progress | None) -> None:
    keys = {batch.index: {sample.key for sample in batch.samples} for batch in run.batches}
    pending = [batch for batch in run.batches if any(keys[batch.index] - method.done for method in methods)]
    mine = share(pending, run.group.rank, run.group.size)
    if progress is not None and run.group.is_main:
        total = sum(len(batch.samples) for batch in run.batches) * len(methods)
        progress.start(total, sum(len(method.done) for method in methods))
    warm: set[tuple[str, str]] = set()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as reader:
        upcoming = None
        for place, batch in enumerate(mine):
            prepared = upcoming.result() if upcoming is not None else _prepare(run, batch)
            if place + 1 < len(mine):
                upcoming = reader.submit(_prepare, run, mine[place + 1])
            if run.settings.strict and prepared.broken:
                raise ValueError(f"{next(iter(prepared.broken.values()))} (--strict; without it the image is skipped)")
            turn = batch.place % len(methods)
            for position, method in enumerate(methods[turn:] + methods[:turn]):
                if keys[batch.index] <= method.done:
                    continue
                _answer(run, method, batch, prepared, position, warm)
                if progress is not None and run.group.is_main:
                    progress.advance(len(batch.samples) * run.group.size, method.spec.label)


def share(batches: Sequence[Batch], rank: int, size: int) -> list[Batch]:
    """The batches of one process: of every task each `size`-th, because captions take much longer than yes or no."""
    seen: dict[str, int] = {}
    mine = []
    for batch in batches:
        place = seen[batch.task.name] = seen.get(batch.task.name, -1) + 1
        if place % size == rank:
            mine.append(batch)
    return mine


def _prepare(run: Evaluation, batch: Batch) -> PreparedBatch:
    return prepare_batch(batch.samples, batch.task, run.template, run.reading_processor)


def _answer(
    run: Evaluation,
    method: MethodRun,
    batch: Batch,
    prepared: PreparedBatch,
    position: int,
    warm: set[tuple[str, str]],
) -> None:
    """Ask one batch with one method and append the records that are missing."""
    common = {sample.key: _identity(sample, run) for sample in batch.samples}
    records = [{**common[key], "error": reason} for key, reason in prepared.broken.items()]
    if prepared.samples:
        model, processor, settings = run.loaded.model, run.loaded.processor, run.settings
        seed = (settings.seed * 1_000_003 + batch.index) % 2**63
        with attached(method.guard):
            if (method.spec.label, batch.task.name) not in warm:
                generate_batch(model, processor, prepared.inputs, settings.decoding, _WARM_UP_TOKENS, seed)
                warm.add((method.spec.label, batch.task.name))
            watch = yes_no_margin(processor, len(prepared.samples)) if batch.task.watches_yes_no else None
            answered = generate_batch(
                model, processor, prepared.inputs, settings.decoding, batch.task.max_new_tokens, seed, watch
            )
            measured = batch.task.measure(method.guard, answered.inputs, answered.output)
        rows = len(prepared.samples)
        extras = measured or [{}] * rows
        margins = [None] * rows if watch is None else watch.margins()
        for sample, answer, extra, margin in zip(prepared.samples, answered.answers, extras, margins, strict=True):
            records.append(
                {
                    **common[sample.key],
                    "prompt": sample.prompt,
                    "text": answer.text,
                    **({} if margin is None else {MARGIN: margin}),
                    "tokens": answer.tokens,
                    "finished": answer.finished,
                    "score": {**batch.task.score(sample, answer.text), **extra},
                    "batch": batch.index,
                    "turn": position,
                    "seconds": round(answered.seconds / len(answered.answers), 6),
                    "memory_bytes": answered.memory_bytes,
                    "memory_kind": answered.memory_kind,
                }
            )
    new = [record for record in records if record["sample"] not in method.done]
    method.write(new)
    method.done.update(record["sample"] for record in new)


@contextmanager
def attached(guard: Guard) -> Iterator[None]:
    """Inside, the guard's model is guarded; what its methods found out when it was made is kept between blocks."""
    guard.attach()
    try:
        yield
    finally:
        guard.remove()


def _identity(sample: Sample, run: Evaluation) -> Record:
    file, folder = run.data.images[sample.image_id], run.data.folder
    image = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
    return {"sample": sample.key, "task": sample.task, "image_id": sample.image_id, "image": image}
