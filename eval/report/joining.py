"""Runs that asked different parts of one benchmark, put together: AMBER's descriptions and its yes/no questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.run.results import MethodResult, RunResults
from vlm_guard.eval.run.resume import differing_fields
from vlm_guard.eval.tasks.shared.registry import task_class, task_names


@dataclass(frozen=True, kw_only=True)
class JoinedRun:
    """A run, or several that asked parts of one benchmark.

    Attributes:
        results: as of one run, with the tasks of all; numbers are the first part's, and have to be computed anew.
        parts: the folder and the results of every part.
    """

    results: RunResults
    parts: tuple[tuple[Path, RunResults], ...]

    @property
    def folder(self) -> Path:
        """The folder of the first part."""
        return self.parts[0][0]


def join_parts(folders: Sequence[Path], runs: Sequence[RunResults]) -> list[JoinedRun]:
    """The runs in their order, parts of one benchmark (`Task.joined_with`) joined to the run that has the other part.

    Raises:
        ValueError: two parts differ in data, decoding, template, model or methods, so that no number can be made of
            both; the message names the field.
    """
    found: list[JoinedRun] = []
    for folder, run in zip(folders, runs):
        place = next((place for place, other in enumerate(found) if _belong(other.results, run)), None)
        if place is None:
            found.append(JoinedRun(results=run, parts=((folder, run),)))
        else:
            found[place] = _joined(found[place], folder, run)
    return found


def meaning_of(run: RunResults) -> dict[str, Any]:
    """What has to be equal for the numbers of two runs to be about the same pictures, answered in the same way."""
    decoding = {name: value for name, value in run.decoding.items() if name not in ("batch_size", "seed")}
    if run.decoding.get("do_sample"):
        decoding["seed"] = run.decoding.get("seed")
    return {"data": {name: value for name, value in run.data.items() if name != "selection"}, "decoding": decoding}


def missing_parts(tasks: Sequence[str]) -> list[str]:
    """A sentence for every number that tasks give only together and that lacks one of the two."""
    known = [name for name in tasks if name in task_names()]
    needed = {name: (task_class(name).joined_with, task_class(name).joined_help) for name in known}
    return [
        f"no {what}: this has only {name}. Ask both parts (--task {','.join(sorted((name, other)))}), or give a run "
        f"of {other} about the same pictures as well"
        for name, (other, what) in needed.items()
        if other is not None and other not in tasks
    ]


def _belong(first: RunResults, second: RunResults) -> bool:
    """Whether two runs are parts of one benchmark: no task in common, and one that wants the other."""
    if not set(first.tasks).isdisjoint(second.tasks):
        return False
    known = set(task_names())
    return any(task_class(name).joined_with in first.tasks for name in second.tasks if name in known)


def _joined(first: JoinedRun, folder: Path, run: RunResults) -> JoinedRun:
    left, right = (
        meaning_of(item) | {"template": item.template, "model": {name: item.model[name] for name in ("name", "dtype")}}
        for item in (first.results, run)
    )
    left["methods"], right["methods"] = ({m.label: m.methods for m in item.methods} for item in (first.results, run))
    differing = differing_fields(left, right)
    if differing:
        name, before, after = differing[0]
        raise ValueError(
            f"{first.folder} and {folder} are parts of one benchmark but cannot be put together: {name} is {before!r} "
            f"in one and {after!r} in the other; ask both parts in the same way, with the same methods"
        )
    others = {method.label: method for method in run.methods}
    methods = [_both(method, others[method.label]) for method in first.results.methods]
    tasks = first.results.tasks | run.tasks
    notes = [*first.results.notes, *run.notes, f"{', '.join(run.tasks)} was asked in a run of its own ({folder.name})"]
    results = first.results.model_copy(update={"tasks": tasks, "methods": methods, "notes": notes})
    return JoinedRun(results=results, parts=(*first.parts, (folder, run)))


def _both(first: MethodResult, second: MethodResult) -> MethodResult:
    """A method's results with the samples of both parts and what each planned."""
    planned: dict[str, int] = {}
    for method in (first, second):
        # Files of versions that wrote no plan were complete when they were written.
        planned |= method.planned or {task: counts.asked for task, counts in method.samples.items()}
    return first.model_copy(update={"samples": first.samples | second.samples, "planned": planned})
