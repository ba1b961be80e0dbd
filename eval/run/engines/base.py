"""The interface of whoever answers: jobs go in, answers come out, and what decides them can be asked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from vlm_guard.eval.run.batches import Batch
from vlm_guard.eval.run.settings import MethodSpec
from vlm_guard.eval.tasks.base import Sample


@dataclass(frozen=True, kw_only=True)
class Job:
    """One batch to be answered by one method.

    Attributes:
        batch: the prompts.
        method: number of the method in the run.
        turn: how many methods answer this batch before it.
    """

    batch: Batch
    method: int
    turn: int


@dataclass(frozen=True, kw_only=True)
class SampleAnswer:
    """The answer to one prompt, and what it took.

    Attributes:
        sample: what was asked.
        text: without special tokens and surrounding blanks.
        tokens: generated tokens, the end token included.
        finished: whether the model ended by itself rather than at the token limit.
        seconds: its share of the time that its batch took.
        memory_bytes: peak memory meanwhile.
        memory_kind: what that memory is.
        yes_margin: how much the model prefers yes to no where the answer begins; None where that was not read.
        measured: what is kept of its mentions, which were scored while the model was at hand (`Task.scored`).
    """

    sample: Sample
    text: str
    tokens: int
    finished: bool
    seconds: float
    memory_bytes: int
    memory_kind: str
    yes_margin: float | None = None
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JobAnswers:
    """What came of a job: every sample of its batch is in one of the two.

    Attributes:
        answers: of the samples that were asked.
        broken: why a sample could not be asked, by its key.
    """

    answers: Sequence[SampleAnswer]
    broken: dict[str, str]


Answered = Generator[tuple[Job, JobAnswers], None, None]
Prepared = TypeVar("Prepared")


def prepared_ahead(
    jobs: Sequence[Job], prepare: Callable[[Batch], Prepared]
) -> Generator[tuple[Job, Prepared], None, None]:
    """Jobs in their order, each with what its batch was prepared to; the next batch is prepared meanwhile.

    Args:
        jobs: those of one batch stand together; it is prepared once for all of them.
        prepare: called in another thread for every batch but the first. Close the generator to wait for it.
    """
    together = [list(group) for _, group in groupby(jobs, key=lambda job: job.batch.index)]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as reader:
        upcoming = None
        for place, group in enumerate(together):
            prepared = upcoming.result() if upcoming is not None else prepare(group[0].batch)
            if place + 1 < len(together):
                upcoming = reader.submit(prepare, together[place + 1][0].batch)
            for job in group:
                yield job, prepared


class Engine(ABC):
    """Whoever answers the prompts of a run.

    Attributes:
        specs: the methods of the run, in order; a job names one by its place here.
        batch_size: how many prompts make a batch.
        timed: what the seconds of answers are: of "generate", or of a "request" as its client sees it.
    """

    specs: Sequence[MethodSpec]
    batch_size: int
    timed: ClassVar[str]

    @abstractmethod
    def fingerprint(self, method: int) -> dict[str, Any]:
        """What decides the answers of a method besides data and tasks, as JSON can hold it.

        Records are only continued with the same. The fields are `template`, `decoding`, `model`, `methods`,
        `attention_backend`, `profile` and `versions`, as in docs/results-schema.md.
        """

    @abstractmethod
    def model(self) -> dict[str, Any]:
        """What results say about the model."""

    @abstractmethod
    def surroundings(self) -> dict[str, Any]:
        """Where and with what answers are made from now on: `versions`, `hardware`, and what else there is to say."""

    @abstractmethod
    def answers(self, jobs: Sequence[Job]) -> Answered:
        """Answer jobs; each comes out once it is answered, in any order. It is called once in a run.

        Closing the generator ends the work; what was not handed out by then is lost.

        Raises:
            ValueError, OSError: a job cannot be answered; the message says why and what to do.
        """


def unreadable_reason(error: OSError, file: Path) -> str:
    """Why a picture cannot be shown, as records say it: without the folders of the machine."""
    return f"no file {file.name}" if isinstance(error, FileNotFoundError) else str(error)
