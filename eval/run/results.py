"""The results file of a run: its schema, written down field by field in docs/results-schema.md, and its version.

Within one major version fields are only added. Readers refuse another major version.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_guard.eval.run.interruption import kept_answers
from vlm_guard.eval.run.received import check_results, first_problem
from vlm_guard.untrusted.json_files import read_json
from vlm_guard.untrusted.printed_text import SHOWN_CHARACTERS, one_line, shown
from vlm_guard.whole_files import write_atomically

SCHEMA_VERSION = "1.0"
RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.jsonl"
RUN_FILE = "run.json"
ANSWERS_SUFFIX = ".run"
"""Behind the name of a file of answers stands the folder of the run that wrote it: captions.jsonl.run."""


FEWEST_FOR_INTERVALS = 10
"""With fewer pictures no interval is shown: resampling so few of them says nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Estimate(_Part):
    """A value with its bootstrap interval over images.

    The field `undefined` is there, and true, where the value says nothing because its whole is 0 (CHAIR_i of captions
    that name nothing): tables show no number there.
    """

    value: float
    low: float
    high: float
    images: int

    @property
    def has_interval(self) -> bool:
        """Whether it stands on enough images for its interval to be shown."""
        return self.images >= FEWEST_FOR_INTERVALS

    @property
    def defined(self) -> bool:
        """Whether the value says something."""
        return not (self.model_extra or {}).get("undefined", False)


class Difference(Estimate):
    """A paired difference to the baseline; `verdict` is better, worse, changed or unclear."""

    verdict: str


class Cost(_Part):
    """What a method's answers took, summed over the records.

    `seconds` is time inside `generate`; with several processes it is the sum over them, and `tokens_per_second` is the
    rate of one process. `peak_memory_bytes` is the largest of any batch. Where a server answered, `timed` is "request":
    the seconds are those its client waited for each request, and nothing is known of memory.
    """

    seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    memory_kind: str
    timed: str = "generate"


class SampleCounts(_Part):
    """How many samples were asked, answered and skipped (unreadable image), and ended at the token limit."""

    asked: int
    answered: int
    skipped: int
    cut_off: int


class MethodResult(_Part):
    """One method's results."""

    label: str
    directory: str
    methods: list[dict[str, Any]]
    samples: dict[str, SampleCounts]
    planned: dict[str, int] = {}
    # Every task's summary stands under the task's name, as a further field. These two are written down because files of
    # schema 1 always have them, with null where the task was not asked.
    chair: dict[str, Any] | None = None
    pope: dict[str, Any] | None = None
    estimates: dict[str, Estimate]
    difference_to_baseline: dict[str, Difference]
    fair: dict[str, dict[str, Any]] = {}
    unchanged: dict[str, int] = {}
    cost: Cost
    task_costs: dict[str, Cost]
    sessions: list[dict[str, Any]]
    skipped_images: list[dict[str, Any]] = []

    def shortfalls(self) -> dict[str, tuple[int, int]]:
        """The tasks that lack records, with the number of records and of planned samples.

        Files of versions that wrote no `planned` say nothing about it: they were complete when they were written.
        """
        asked = {task: counts.asked for task, counts in self.samples.items()}
        return {
            task: (asked.get(task, 0), planned)
            for task, planned in self.planned.items()
            if asked.get(task, 0) < planned
        }

    def estimate(self, metric: str) -> Estimate | None:
        """A metric's estimate, as tables show it: None where there is none or it says nothing."""
        found = self.estimates.get(metric)
        return found if found is not None and found.defined else None

    def difference(self, metric: str) -> Difference | None:
        """A metric's difference to the baseline, as tables show it: None where there is none or it says nothing."""
        found = self.difference_to_baseline.get(metric)
        return found if found is not None and found.defined else None

    def summary(self, task: str) -> dict[str, Any] | None:
        """What stands under a task's name; None where the task was not asked."""
        found = getattr(self, task, None)
        return found if isinstance(found, dict) else None

    @property
    def complete(self) -> bool:
        """Whether every planned sample of every task has a record."""
        return not self.shortfalls()

    @property
    def shown_label(self) -> str:
        """The label as tables show it: an incomplete method says so."""
        return self.label if self.complete else f"{self.label} (incomplete)"


class RunResults(_Part):
    """All of a run: what was asked, of whom, how, and what came out. The first method is the baseline."""

    schema_version: str = SCHEMA_VERSION
    created: str
    data: dict[str, Any]
    image_ids: list[int]
    tasks: dict[str, dict[str, Any]]
    template: dict[str, Any]
    decoding: dict[str, Any]
    protocol: dict[str, Any] | None = None
    model: dict[str, Any]
    profile: dict[str, Any] | None
    statistics: dict[str, Any]
    environment: dict[str, Any]
    baseline: str
    methods: list[MethodResult]
    notes: list[str] = []

    def method(self, label: str) -> MethodResult:
        """The results of one method.

        Raises:
            ValueError: the run has no such method.
        """
        for result in self.methods:
            if result.label == label:
                return result
        raise ValueError(f"the run has no method {label!r}; it has {', '.join(item.label for item in self.methods)}")

    def shortfalls(self) -> list[str]:
        """A sentence for every method and task that lacks records; empty for a whole run."""
        return [
            f"incomplete: {method.label} has records of {asked} of {planned} samples of {task}; run the same "
            "'vlm-guard eval' again to ask the rest"
            for method in self.methods
            for task, (asked, planned) in method.shortfalls().items()
        ]

    def save(self, folder: Path) -> Path:
        """Write `results.json` into the folder, atomically."""
        path = folder / RESULTS_FILE
        write_atomically(path, self.to_json() + "\n")
        return path

    def to_json(self) -> str:
        """The results as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)


def run_folder(path: Path) -> Path:
    """The folder of a run, named by itself or by the file of answers that the run wrote."""
    beside = path.with_name(path.name + ANSWERS_SUFFIX)
    return beside if not path.is_dir() and beside.is_dir() else path


def read_results(folder: Path) -> RunResults:
    """The results of a finished run.

    Raises:
        FileNotFoundError: the folder has no results file.
        ValueError: it is damaged or of another major version.
    """
    path = folder if folder.is_file() else folder / RESULTS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            _half_done(folder)
            or f"there is no {RESULTS_FILE} in {folder}; 'vlm-guard eval' writes it when it has finished"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no results file: it holds {shown(content)}")
    version = one_line(str(content.get("schema_version", "")), SHOWN_CHARACTERS)
    readable = SCHEMA_VERSION.partition(".")[0]
    if version.partition(".")[0] != readable:
        raise ValueError(f"{path} has schema version {version or 'none'}, this program reads {readable}.x")
    check_results(content, path)
    try:
        return RunResults(**content)
    except ValidationError as error:
        raise ValueError(f"{path} is no results file: {first_problem(error)}") from error


def _half_done(out: Path) -> str:
    """How far a run is that has not come to its end; "" where the folder holds none."""
    places = [path.parent for path in sorted(out.glob(f"*/{RUN_FILE}"))]
    if not places:
        return ""
    kept = kept_answers(out, [place.name for place in places])
    try:
        planned = [sum(read_json(place / RUN_FILE)["planned"].values()) for place in places]
        total = f"{min(kept, sum(planned))} of {sum(planned)}" if all(planned) else str(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        total = str(kept)  # of an earlier version, which did not note how many there will be
    return f"the run in {out} is not at its end: {total} answers; go on with the same command ('vlm-guard eval' ...)"
