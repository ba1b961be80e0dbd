"""The file that `vlm-guard caption` and `vlm-guard ask` write: one line for each answer of each method.

A run works in a folder beside it (`captions.jsonl.run`) as `vlm-guard eval` does; the file is made from its records
when all of them are there, whole or not at all.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_guard.eval.run.records import Record, read_records
from vlm_guard.eval.run.results import ANSWERS_SUFFIX, SAMPLES_FILE, MethodResult, RunResults
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.whole_files import write_atomically


def folder_for(answers: Path) -> Path:
    """Where the run that writes this file works.

    Raises:
        ValueError: the file is there and no run has written it, so it would be lost; or its place is a folder.
    """
    folder = answers.with_name(answers.name + ANSWERS_SUFFIX)
    if answers.is_dir():
        raise ValueError(f"--out {answers} is a folder; give the name of the file to write, such as {answers}.jsonl")
    if answers.exists() and not folder.is_dir():
        raise ValueError(
            f"{answers} is there and was not written by a run of this program ({folder.name} is not beside it); give "
            "another --out, or move the file away"
        )
    return folder


def write_answers(results: RunResults, answers: Path) -> int:
    """Write the answers of all methods of a run, method by method; each line names its method.

    Args:
        results: the run's results; its records lie in `folder_for(answers)`.
        answers: the file to write.

    Returns:
        How many pictures or questions have no line because a picture could not be read, over all methods.
    """
    folder = folder_for(answers)
    lines: list[str] = []
    left_out = 0
    for method in results.methods:
        for record in _records(folder, method):
            if "error" in record:
                left_out += 1
                continue
            line = {**task_class(record["task"]).answer_line(record), "method": method.label}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(answers, "".join(lines))
    return left_out


def read_answers(answers: Path) -> list[dict[str, Any]]:
    """The lines of a file that `write_answers` has written."""
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").split("\n") if line]


def _records(folder: Path, method: MethodResult) -> Iterator[Record]:
    """A method's records, those with the number of a question in the order of the questions' file."""
    records = list(read_records(folder / method.directory / SAMPLES_FILE)[0].values())
    records.sort(key=lambda record: record.get("score", {}).get("number", 0))  # the sort is stable
    yield from records
