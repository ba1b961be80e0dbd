"""What a run folder must hold before its numbers are used: runs are passed on, so their files may come from anybody.

Checked are the fields that this program reads; others stay as they are. Checking a hundred thousand records takes about
two seconds.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from vlm_guard.eval.tasks.shared.received import Amount, Count, Received, Whole
from vlm_guard.eval.tasks.shared.registry import task_class, task_names
from vlm_guard.untrusted.paths import relative_name
from vlm_guard.untrusted.printed_text import one_line, shown


class _Record(Received):
    sample: str
    task: str
    image_id: Whole
    image: str


class _Skipped(_Record):
    error: str


class _Answered(_Record):
    prompt: str
    text: str
    tokens: Count
    finished: bool
    score: dict[str, Any]
    yes_margin: Annotated[float, Field(ge=-1e15, le=1e15)] | None = None
    seconds: Amount
    timed: str = "generate"
    memory_bytes: Count
    memory_kind: str


class _Data(Received):
    name: str
    images: Count
    annotations_sha256: dict[str, str] = {}


class _Decoding(Received):
    do_sample: bool
    num_beams: Count


class _Model(Received):
    name: str
    dtype: str


class _Protocol(Received):
    name: str
    changes: list[str]


class _Statistics(Received):
    level: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=1, le=1_000_000)]


class _Environment(Received):
    versions: dict[str, Any]
    hardware: dict[str, Any]
    git: dict[str, Any] | None = None


class _Options(Received):
    method: str
    options: dict[str, Any]


class _Method(Received):
    label: str
    directory: str
    methods: list[_Options]


class _Results(Received):
    created: str
    data: _Data
    image_ids: list[Whole]
    tasks: dict[str, dict[str, Any]]
    template: dict[str, Any]
    decoding: _Decoding
    protocol: _Protocol | None = None
    model: _Model
    statistics: _Statistics
    environment: _Environment
    baseline: str
    methods: Annotated[list[_Method], Field(min_length=1)]


def check_results(content: Mapping[str, Any], path: Path) -> None:
    """Check the content of a `results.json`.

    Raises:
        ValueError: a field is missing or of a wrong type, an image is listed twice, or a method's records are said to
            lie outside of the run's folder; the message names the file and the field.
    """
    try:
        read = _Results.model_validate(dict(content))
    except ValidationError as error:
        raise ValueError(f"{path} is no results file: {first_problem(error)}") from error
    for name, described in read.tasks.items():
        if name not in task_names():  # one of a package that is not installed here: nothing reads what it says
            continue
        try:
            task_class(name).Described.model_validate(described)
        except ValidationError as error:
            raise ValueError(f"{path} is no results file: tasks.{name}.{first_problem(error)}") from error
    if len(set(read.image_ids)) < len(read.image_ids):
        raise ValueError(f"{path} is no results file: 'image_ids' lists an image twice")
    labels = [method.label for method in read.methods]
    if len(set(labels)) < len(labels):
        raise ValueError(f"{path} is no results file: two of its methods have the same label")
    for method in read.methods:
        where = f"{path}: method {shown(method.label)}"
        name = relative_name(method.directory, where)
        if "/" in name or "\\" in name or name == ".":
            raise ValueError(f"{where}: the directory {shown(name)} must be a folder beside {path.name}")


def check_samples(records: Iterable[Mapping[str, Any]], tasks: Iterable[str], path: Path) -> None:
    """Check the records of a `samples.jsonl`.

    Args:
        records: the records.
        tasks: the tasks that the run's results name.
        path: the file, for the message.

    Raises:
        ValueError: a field is missing or of a wrong type, or a record belongs to no task of the run; the message names
            the file and the sample.
    """
    known = set(tasks)
    checked = {name: task_class(name).Score for name in known if name in task_names()}
    for record in records:
        where = f"{path}: sample {shown(record.get('sample'))}"
        task = record.get("task")
        try:
            (_Skipped if "error" in record else _Answered).model_validate(record)
            if "error" not in record and task in checked:
                checked[task].model_validate(record["score"])
        except ValidationError as error:
            raise ValueError(f"{where} is damaged: {first_problem(error)}") from error
        if task not in known:
            raise ValueError(f"{where} belongs to the task {shown(task)}; the run has {', '.join(sorted(known))}")
        relative_name(record["image"], where)


def first_problem(error: ValidationError) -> str:
    """The first of a validation's problems in one line: the field, what is wrong, what was given."""
    item = error.errors(include_url=False)[0]
    place = ".".join(map(str, item["loc"]))
    given = "" if item["type"] == "missing" else f" (given {shown(item['input'])})"
    return one_line(f"{place}: {item['msg']}{given}" if place else f"{item['msg']}{given}")
