"""What a run folder must hold before its numbers are used: runs are passed on, so their files may come from anybody.

Checked are the fields that this program reads; others stay as they are. Checking a hundred thousand records takes about
two seconds.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vlm_guard.untrusted.paths import relative_name
from vlm_guard.untrusted.printed_text import one_line, shown

Count = Annotated[int, Field(ge=0, le=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Whole = Annotated[int, Field(ge=-(10**18), le=10**18)]


def _is_name(text: str) -> str:
    if not text.isprintable() or len(text) > _LONGEST_NAME:
        raise ValueError(f"a name has at most {_LONGEST_NAME} signs, all of which can be shown")
    return text


_LONGEST_NAME = 100
Name = Annotated[str, AfterValidator(_is_name)]
"""Text that becomes part of a metric's name."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Mention(_Part):
    node: str
    text: str
    start: Count
    end: Count
    hallucinated: bool


class _ChairScore(_Part):
    mentions: list[_Mention]
    objects: list[str]
    chair_s: Annotated[int | bool | float, Field(ge=0, le=1)]
    tokens: Count
    words: Count
    repeated_4_grams: Annotated[float, Field(ge=0, le=1)]


class _PopeScore(_Part):
    answer: Literal["yes", "no", "unparsed"]
    label: Literal["yes", "no"]
    object: str
    strategies: Annotated[list[Name], Field(min_length=1)]


class _Record(_Part):
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
    seconds: Amount
    memory_bytes: Count
    memory_kind: str


_SCORES: dict[str, type[BaseModel]] = {"chair": _ChairScore, "pope": _PopeScore}


class _Data(_Part):
    name: str
    images: Count
    annotations_sha256: dict[str, str] = {}


class _Chair(_Part):
    text_mode: str
    prompt: str
    max_new_tokens: Count


class _Pope(_Part):
    suffix: str
    parser: str


class _Decoding(_Part):
    do_sample: bool
    num_beams: Count


class _Model(_Part):
    name: str
    dtype: str


class _Statistics(_Part):
    level: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=1, le=1_000_000)]


class _Environment(_Part):
    versions: dict[str, Any]
    hardware: dict[str, Any]
    git: dict[str, Any] | None = None


class _Options(_Part):
    method: str
    options: dict[str, Any]


class _PopeSummary(_Part):
    strategies: dict[str, Any]


class _Method(_Part):
    label: str
    directory: str
    methods: list[_Options]
    pope: _PopeSummary | None = None


class _Tasks(_Part):
    chair: _Chair | None = None
    pope: _Pope | None = None


class _Results(_Part):
    created: str
    data: _Data
    image_ids: list[Whole]
    tasks: _Tasks
    template: dict[str, Any]
    decoding: _Decoding
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
    for record in records:
        where = f"{path}: sample {shown(record.get('sample'))}"
        task = record.get("task")
        try:
            (_Skipped if "error" in record else _Answered).model_validate(record)
            if "error" not in record and task in _SCORES:
                _SCORES[task].model_validate(record["score"])
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
