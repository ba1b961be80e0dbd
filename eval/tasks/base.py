"""The base class of tasks: what is asked about pictures, how an answer becomes a record, what the records say.

A task is one file (or a folder with `task.py`) in this folder, or a class in any installed package that names it under
the entry point group `vlm_guard.tasks`. docs/new-task.md shows one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_guard.eval.tasks.shared.received import Received
from vlm_guard.eval.tasks.shared.settings import TaskSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from vlm_guard.eval.data.datasets import EvaluationData
    from vlm_guard.eval.tasks.shared.drawing import Drawn
    from vlm_guard.eval.tasks.shared.fair import FairPair
    from vlm_guard.eval.tasks.shared.metric import Column, Metric
    from vlm_guard.grounding.grounded_answer import GroundedAnswer
    from vlm_guard.grounding.settings import Grounding

Record = dict[str, Any]
"""One line of samples.jsonl: the sample, its answer and its score (docs/results-schema.md)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt about one picture.

    Attributes:
        key: unique in a run and the same in every run of the same settings, for example "pope/139/a dog".
        task: name of the task.
        image_id: picture asked about, a key of the data's images; intervals are over these.
        prompt: the text put into the template, suffix included.
        variant: which form of the picture, where the task changes it (`Task.picture`); "" for the picture as it is.
    """

    key: str
    task: str
    image_id: int
    prompt: str
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepRule:
    """By which of a task's metrics a method's strength is chosen.

    Attributes:
        lower: the metric that is to become lower.
        keep: the metric that this must not cost.
        slack: how much of it may be lost, a fraction.
        shown: the metrics that the sweep's file holds, the two among them.
    """

    lower: str
    keep: str
    slack: float
    shown: tuple[str, ...]


class Task(ABC):
    """A set of prompts with a score.

    An object of it asks; the class alone reads finished records, so that old runs can be shown without their pictures.

    Args:
        data: the pictures and what is known about them.
        settings: an object of `Settings`; the defaults if None.
        seed: of whatever the task draws at random.

    Attributes:
        name: as on the command line and in records; `register_task` sets it.
        help: one line on what is measured.
        source: the paper or release it follows.
        table_title: what its answers are called above their table, such as "captions".
        own_data: the kind of `--data` that `open_data` opens, such as "amber" of `amber:FOLDER`; None for none.
        data_kinds: the kinds of `--data` it can be asked about.
        data_help: how to give such data, for people.
        Settings: the class of its settings.
        Score: what the `score` of a record must hold before it is used; files of runs may come from anybody.
        Described: what `describe` gave, as a results.json must hold it.
        columns: the metrics that tables show, in order.
        watches_yes_no: whether records shall hold how much the model prefers yes to no where its answer begins.
        joined_with: another task that `joined_metrics` need the answers of as well; None for none.
        joined_help: what these metrics are, for the sentence that says why they are missing.
        sweep: how `vlm-guard sweep` chooses a strength by this task; None where it cannot.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    source: ClassVar[str] = ""
    table_title: ClassVar[str] = "answers"
    own_data: ClassVar[str | None] = None
    data_kinds: ClassVar[tuple[str, ...]] = ("scenes", "coco")
    data_help: ClassVar[str] = "scenes:SPLIT[:SEED] or coco:FOLDER"
    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    Score: ClassVar[type[Received]] = Received
    Described: ClassVar[type[Received]] = Received
    columns: ClassVar[tuple[Column, ...]] = ()
    watches_yes_no: ClassVar[bool] = False
    joined_with: ClassVar[str | None] = None
    joined_help: ClassVar[str] = ""
    sweep: ClassVar[SweepRule | None] = None

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        self.data = data
        self.settings: Any = settings if settings is not None else self.Settings()
        self.seed = seed

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """Open data of the kind `own_data`.

        Args:
            place: what stands behind the colon of `--data`.
            count: at most this many pictures, the first ones.
            settings: an object of `Settings`.

        Raises:
            ValueError, FileNotFoundError: there is no such data at this place; the message says what is expected.
        """
        raise NotImplementedError(f"the task {cls.name} says it opens {cls.own_data}:..., but does not")

    @classmethod
    def asked_images(cls, settings: TaskSettings) -> list[int] | None:
        """The ids of the images that the task's question files name; None where it asks about every image of the data.

        Raises:
            ValueError, FileNotFoundError: a question file is missing or is none.
        """
        return None

    # ---- asking --------------------------------------------------------------------------------------------------

    @property
    def max_new_tokens(self) -> int:
        """Where an answer is cut off, in tokens."""
        return self.settings.max_new_tokens

    @abstractmethod
    def samples(self) -> list[Sample]:
        """All prompts, those of one picture side by side."""

    @abstractmethod
    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """What the record of an answer holds under `score`, as JSON can hold it."""

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the numbers mean, for results and resume: by default the settings."""
        return {**self.settings.model_dump(mode="json"), "max_new_tokens": self.max_new_tokens}

    def grounding(self) -> Grounding | None:
        """How the mentions of answers are found and scored while their model is at hand; None where they are not."""
        return None

    def scored(self, answer: GroundedAnswer) -> dict[str, Any]:
        """What the record of an answer holds of its mentions under `score`, beside what `score` gives."""
        return {}

    def picture(self, sample: Sample, read: Callable[[Path], Image]) -> Image:
        """The picture to show with a sample; `read` gives a file as RGB."""
        return read(self.data.images[sample.image_id])

    # ---- reading records: no pictures, no model ------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """What one answered record adds to the sums that metrics are computed from."""

    @classmethod
    @abstractmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The numbers that these answered records give."""

    @classmethod
    def joined_metrics(cls) -> tuple[Metric, ...]:
        """Numbers of this task and `joined_with` together, from counts by the names "TASK/COUNT"."""
        return ()

    @classmethod
    def comparable_metrics(cls, first: Sequence[Record], second: Sequence[Record]) -> tuple[Metric, ...]:
        """The metrics that both sets of records give, for differences."""
        names = {metric.name for metric in cls.metrics(first)}
        return tuple(metric for metric in cls.metrics(second) if metric.name in names)

    @classmethod
    def fair_pair(cls, baseline: Sequence[Record], other: Sequence[Record]) -> FairPair | None:
        """A comparison of a method with the baseline that takes an easy explanation of its gain away; None for none."""
        return None

    @classmethod
    def image_counts(cls, records: Sequence[Record]) -> dict[str, float]:
        """The counts of all answered records of one picture; by default the sum of each record's."""
        total: dict[str, float] = {}
        for record in records:
            for name, value in cls.counts(record).items():
                total[name] = total.get(name, 0) + value
        return total

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """What results.json holds under the task's name for a method; `described` is what `describe` gave."""
        return {"answers": len(records)}

    @classmethod
    def notes(
        cls, described: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]], asked: int, pictures: int
    ) -> list[str]:
        """What a reader has to know before these numbers are believed, a sentence each, shown below tables.

        Args:
            described: what `describe` gave.
            summaries: what `summarise` gave, by the method's label, the baseline first.
            asked: number of pictures that the numbers rest on.
            pictures: number of pictures of the run.
        """
        return []

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """The task in half a sentence, as it stands below tables."""
        return cls.help.rstrip(".")

    @classmethod
    def plots(cls) -> dict[str, Callable[[Drawn], Figure]]:
        """Plots by file name, each drawn from finished runs (`vlm_guard.eval.tasks.shared.drawing`)."""
        return {}

    @classmethod
    def answer_line(cls, record: Record) -> dict[str, Any]:
        """What a file of answers holds of an answered record (`vlm_guard.eval.run.answers`), besides the method."""
        return {"image": record["image"], "prompt": record["prompt"], "text": record["text"]}

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """What the results page shows of an answered record.

        Either a question, `question` (text), `label` (the right answer), `groups` (words), `answer` (as read), or a
        caption, `caption` (text, mentions as [start, end, name, wrong], words, finished) and `objects`.
        """
        score = record["score"]
        return {
            "question": record["prompt"],
            "label": str(score.get("label", "")),
            "groups": [],
            "answer": str(score.get("answer", record["text"])),
        }
