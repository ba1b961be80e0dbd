"""Answers that any tool wrote, with intervals: the same metrics, bootstrap and differences as those of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vlm_guard.eval.report.console import legend_line, metric_tables
from vlm_guard.eval.report.reading_notes import few_pictures
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.run.results import Estimate, MethodResult
from vlm_guard.eval.run.statistics import FEW_PICTURES, LEVEL
from vlm_guard.eval.run.summary import MethodRecords
from vlm_guard.eval.tasks.chair.report import ChairReport
from vlm_guard.eval.tasks.chair.scoring import CaptionScore
from vlm_guard.eval.tasks.pope.parsers import parse_answer
from vlm_guard.eval.tasks.pope.questions import PopeQuestion
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.untrusted.printed_text import one_line

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class ScoredFiles:
    """Methods beside each other, whose answers came in files.

    Attributes:
        task: name of the task that scored them.
        methods: with estimates over a method's own pictures, and differences to the first over those that all have.
        pictures: how many pictures each method has, by label.
        shared: how many pictures all have.
    """

    task: str
    methods: tuple[MethodResult, ...]
    pictures: dict[str, int]
    shared: int

    def notes(self) -> list[str]:
        """What a reader has to know, a sentence each."""
        found = [few_pictures(self.shared)] if self.shared < FEW_PICTURES else []
        if any(count != self.shared for count in self.pictures.values()):
            counts = ", ".join(f"{label} {count}" for label, count in self.pictures.items())
            found.append(f"differences are over the {self.shared} pictures that all have ({counts})")
        summaries = {method.label: method.summary(self.task) for method in self.methods}
        known = {label: summary for label, summary in summaries.items() if summary is not None}
        return [*found, *task_class(self.task).notes({}, known, self.shared, self.shared)]

    def to_dict(self, label: str) -> dict[str, Any]:
        """What JSON holds of a method besides its summary."""
        method = next(method for method in self.methods if method.label == label)
        said: dict[str, Any] = {"estimates": _dumped(method.estimates)}
        if len(self.methods) > 1:
            said |= {"difference_to_first": _dumped(method.difference_to_baseline), "shared_pictures": self.shared}
        return said

    def print(self, console: Console) -> None:
        """The table that `vlm-guard eval` prints, and how to read it."""
        columns = [
            column
            for column in task_class(self.task).columns
            if any(column.metric in method.estimates for method in self.methods)
        ]
        title = task_class(self.task).table_title
        methods = [method.model_copy(update={"label": method.label or title}) for method in self.methods]
        for table in metric_tables(methods, methods[0].label, columns, console.width):
            console.print()
            console.print(table)
        console.print(f"\n{legend_line(LEVEL, methods)}", style="dim")
        said = next((method.fair[self.task]["what"] for method in self.methods if self.task in method.fair), None)
        for column in columns if said is not None else ():
            if column.kind == "difference":
                console.print(f'"{column.label.rstrip(" ↑↓")}" is {said}.', style="dim", highlight=False)
        for note in self.notes():
            console.print(f"note: {one_line(note)}", style="yellow", markup=False, highlight=False)


def _dumped(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: item.model_dump() for name, item in estimates.items()}


def score_files(
    task: str, records: Mapping[str, Sequence[Record]], summaries: Mapping[str, Mapping[str, Any]]
) -> ScoredFiles:
    """Estimates with intervals over pictures, and paired differences to the first method.

    Args:
        task: name of the task.
        records: by label, the records of each method (`caption_records`, `answer_records`).
        summaries: by label, what the task's `summarise` would give.

    Raises:
        ValueError: there are several methods and no picture that all have.
    """
    pictures = {label: {record["image_id"] for record in items} for label, items in records.items()}
    shared = set.intersection(*pictures.values())
    if len(records) > 1 and not shared:
        raise ValueError(f"{', '.join(records)} have no picture in common, so there is no difference to give")
    methods: list[MethodResult] = []
    first: MethodRecords | None = None
    for label, items in records.items():
        own = MethodRecords(items)
        paired = MethodRecords([record for record in items if record["image_id"] in shared])
        fair, said = ({}, {}) if first is None else paired.fair_differences(first, RESAMPLES)
        summary: dict[str, Any] = {task: dict(summaries[label])}
        methods.append(
            MethodResult(
                label=label,
                directory="",
                methods=[],
                samples={},
                **summary,
                estimates=own.estimates(RESAMPLES) | fair,
                fair=said,
                difference_to_baseline={} if first is None else paired.differences_to(first, RESAMPLES),
                cost=own.cost(),
                task_costs={},
                sessions=[],
            )
        )
        first = first if first is not None else paired
    counts = {label: len(found) for label, found in pictures.items()}
    return ScoredFiles(task=task, methods=tuple(methods), pictures=counts, shared=len(shared))


# What records of a run hold besides, and what no number here uses.
_NOT_MEASURED = {"seconds": 0.0, "tokens": 0, "memory_bytes": 0, "memory_kind": ""}


def caption_records(scores: Sequence[CaptionScore]) -> list[Record]:
    """Scored captions as the records of a run. Whether a caption was cut off is not known, so its text decides."""
    found: list[Record] = []
    seen: dict[int, int] = {}
    for score in scores:
        number = seen[score.image_id] = seen.get(score.image_id, 0) + 1
        found.append(
            {
                "sample": f"chair/{score.image_id}/{number}",
                "task": "chair",
                "image_id": score.image_id,
                "text": score.caption,
                "finished": False,
                "score": score.to_dict(),
                **_NOT_MEASURED,
            }
        )
    return found


def answer_records(questions: Sequence[PopeQuestion], texts: Sequence[str], parser: str) -> list[Record]:
    """Answers to POPE's questions as the records of a run; empty where a question names no picture.

    Args:
        questions: the questions.
        texts: the answer to each.
        parser: how answers are read.
    """
    if not all(question.image for question in questions):
        return []
    numbers: dict[str, int] = {}
    return [
        {
            "sample": f"pope/{question.strategy}/{place}",
            "task": "pope",
            "image_id": numbers.setdefault(question.image, len(numbers)),
            "text": text,
            "finished": True,
            "score": {
                "answer": parse_answer(text, parser, question.label),
                "label": question.label,
                "object": question.object,
                "strategies": [question.strategy],
            },
            **_NOT_MEASURED,
        }
        for place, (question, text) in enumerate(zip(questions, texts, strict=True))
    ]


def labelled_reports(files: Sequence[tuple[Path, Mapping[str, ChairReport]]]) -> dict[str, ChairReport]:
    """The reports of several caption files under a label each: the method's name, the file's, or both.

    Raises:
        ValueError: a file is given twice.
    """
    if len({path.resolve() for path, _ in files}) < len(files):
        raise ValueError("the same file of captions is given twice")
    if len(files) == 1:
        return dict(files[0][1])
    stems = [path.stem for path, _ in files]
    found: dict[str, ChairReport] = {}
    for path, reports in files:
        name = path.stem if stems.count(path.stem) == 1 else str(path)
        found |= {(name if len(reports) == 1 else f"{name}/{method}"): report for method, report in reports.items()}
    return found
