"""Runs whose answers a judge reads: the prompts of all methods as one file, and the numbers that its verdicts give."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlm_guard.eval.report.compare import Comparison, compare_runs
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.tasks.shared.judging import JudgedTask, judge_prompts, read_verdicts, with_verdicts
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.untrusted.printed_text import shown
from vlm_guard.whole_files import write_atomically

_BETWEEN = "|"


def write_prompts(folders: Sequence[Path], path: Path, template: Path | None = None) -> int:
    """Write what to ask the judge about the answers of runs: one line with `id` and `prompt` each.

    Args:
        folders: folders that `vlm-guard eval` wrote.
        path: JSONL to write.
        template: file with the prompt, instead of the tasks' own; the tasks' fields stand in it in braces.

    Returns:
        The number of prompts.

    Raises:
        FileNotFoundError: a folder holds no finished run, or there is no such template.
        ValueError: none of the runs has a task that is judged, or the template lacks a field.
    """
    text = None if template is None else template.read_text(encoding="utf-8")
    comparison = compare_runs(folders)
    lines = []
    for label, records in comparison.records.items():
        for task, own in _judged(records).items():
            for key, prompt in judge_prompts(task, own, text).items():
                line = {"id": f"{label}{_BETWEEN}{key}", "prompt": prompt}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    if not lines:
        raise ValueError(
            f"{folders[0]} has no answers that a judge reads; its tasks are {', '.join(comparison.results.tasks)}"
        )
    write_atomically(path, "".join(lines))
    return len(lines)


def judge_runs(folders: Sequence[Path], verdicts: Path, baseline: str | None = None) -> Comparison:
    """Runs with what the judge said about their answers.

    Args:
        folders: folders that `vlm-guard eval` wrote.
        verdicts: file of records with `id`, as in the file of prompts, and `verdict`.
        baseline: as for `compare_runs`.

    Raises:
        FileNotFoundError: a folder holds no finished run, or there is no such file.
        ValueError: a prompt has no verdict, a verdict belongs to no method, or the runs have no task that is judged.
    """
    said: dict[str, dict[str, str]] = {}
    for key, verdict in read_verdicts(verdicts).items():
        label, between, prompt = key.rpartition(_BETWEEN)
        if not between:
            raise ValueError(f"{verdicts}: the id {shown(key)} is none of a file of prompts: METHOD|SAMPLE#NAME")
        said.setdefault(label, {})[prompt] = verdict
    judged = set()

    def add(label: str, records: list[Record]) -> list[Record]:
        known = said.get(label, {})
        for task, own in _judged(records).items():
            judged.add(label)
            try:
                given = {record["sample"]: record for record in with_verdicts(task, own, known)}
            except ValueError as error:
                raise ValueError(f"{verdicts}: {label}: {error}") from error
            records = [given.get(record["sample"], record) for record in records]
        return records

    comparison = compare_runs(folders, baseline, change=add)
    if not judged:
        raise ValueError(f"{folders[0]} has no answers that a judge reads")
    if unknown := said.keys() - judged:
        raise ValueError(f"{verdicts} has verdicts on {shown(min(unknown))}, which the runs do not have")
    return comparison


def _judged(records: Sequence[Record]) -> Mapping[type[JudgedTask], list[Record]]:
    """The answered records of every task that is judged."""
    found: dict[type[JudgedTask], list[Record]] = {}
    for record in records:
        task = task_class(record["task"])
        if issubclass(task, JudgedTask) and "error" not in record:
            found.setdefault(task, []).append(record)
    return found
