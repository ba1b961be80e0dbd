"""The settings of an evaluation run: from a YAML file, with command-line flags on top."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vlm_guard.eval.run.generation import Decoding
from vlm_guard.eval.tasks.base import CAPTION_PROMPT, STRATEGIES, TASK_NAMES
from vlm_guard.method.base import Method
from vlm_guard.method.registry import read_method_text, resolve_methods
from vlm_guard.untrusted.printed_text import shown
from vlm_guard.untrusted.yaml_files import read_yaml_mapping

_PROBLEMS_SHOWN = 4


FilePath = Annotated[Path, Field(strict=False)]
"""A path, also as the text that a YAML file holds."""


class PopeSettings(BaseModel):
    """How POPE is asked and read."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    strategies: list[str] = list(STRATEGIES)
    per_image: int = Field(6, ge=2, multiple_of=2)
    suffix: str = "none"
    parser: str = "strict"
    max_new_tokens: int = Field(10, ge=1)
    questions: list[FilePath] = []


class RunSettings(BaseModel):
    """Everything that can be set for a run; the names are those of the YAML file and (with dashes) of the flags."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = "builtin"
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False
    attention_backend: str | None = None
    data: str = "scenes:common"
    split: str | None = None
    count: int | None = Field(None, ge=1)
    limit: int | None = Field(None, ge=1)
    image_list: FilePath | None = None
    chair_mode: str = "pattern"
    tasks: list[str] = list(TASK_NAMES)
    methods: list[str] = ["none", "var"]
    options: dict[str, Any] = {}
    prompt: str = CAPTION_PROMPT
    template: str | None = None
    max_new_tokens: int = Field(512, ge=1)
    pope: PopeSettings = PopeSettings()
    decoding: Decoding = Decoding()
    batch_size: int = Field(16, ge=1)
    seed: int = Field(0, ge=0)
    strict: bool = False
    resume: bool = True
    resamples: int = Field(2000, ge=100)

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: list[str]) -> list[str]:
        unknown = [name for name in value if name not in TASK_NAMES]
        if unknown or not value:
            raise ValueError(f"tasks are {shown(value)}; allowed: {', '.join(TASK_NAMES)}")
        return list(dict.fromkeys(value))

    @property
    def image_count(self) -> int | None:
        """How many images are used: the smaller of `count` and `limit`."""
        given = [number for number in (self.count, self.limit) if number is not None]
        return min(given) if given else None


def read_settings(path: Path | None, flags: Mapping[str, Any]) -> RunSettings:
    """Settings from a YAML file with flags on top; flags that are None were not given.

    Nested settings are given as dotted names, for example "pope.parser".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML mapping, or a setting is unknown or out of range.
    """
    content = {} if path is None else read_yaml_mapping(path)
    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        _put(content, name.split("."), value)
    try:
        return RunSettings(**content)
    except ValidationError as error:
        items = error.errors(include_url=False)
        from_flags = all(".".join(map(str, item["loc"])).startswith(tuple(given) or "-") for item in items)
        where = "" if path is None or from_flags else f"{path}: "
        raise ValueError(where + "; ".join(_problems(items))) from None


def _put(content: dict[str, Any], way: Sequence[str], value: Any) -> None:
    """Put a flag's value into the settings; options of methods are added to those that are there."""
    target: Any = content
    for part in way[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):  # the file has a value where settings belong; the check says so
            return
    before = target.get(way[-1])
    target[way[-1]] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value


def _problems(items: Sequence[Any]) -> list[str]:
    """What is wrong with the settings, one text for each of the first few."""
    problems = []
    for item in items[:_PROBLEMS_SHOWN]:
        place = shown(".".join(map(str, item["loc"]))).strip("'\"")
        if item["type"] == "extra_forbidden":
            fields = {"pope": PopeSettings, "decoding": Decoding}.get(str(item["loc"][0]), RunSettings).model_fields
            near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"{place}: there is no such setting{hint} (allowed settings: {', '.join(fields)})")
        else:
            given = "" if item["type"] == "missing" else f" (given {shown(item['input'])})"
            problems.append(f"{place}: {item['msg']}{given}")
    if len(items) > _PROBLEMS_SHOWN:
        problems.append(f"and {len(items) - _PROBLEMS_SHOWN} more")
    return problems


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One entry of the comparison.

    Attributes:
        label: what the tables call it: the text it was given by.
        directory: the same as a folder name.
        methods: the methods, applied in order.
    """

    label: str
    directory: str
    methods: tuple[Method, ...]


def parse_methods(texts: list[str], options: Mapping[str, Any]) -> list[MethodSpec]:
    """The entries of a comparison.

    Args:
        texts: each a line as `vlm_guard.method.method_text` says: "var", "var+vcd", "var:move_fraction=0.6,layers=all".
        options: options for all entries that contain the method, with its name in front ("var.move_fraction"); the
            name may be left out when only one method other than none takes part.

    Raises:
        ValueError: unknown methods or options, an option that no entry takes, or two entries of one label.
    """
    entries = [read_method_text(text) for text in texts]
    named = {name for names, _ in entries for name in names} - {"none"}
    shared: dict[str, Any] = {}
    for name, value in options.items():
        if "." not in name:
            if len(named) != 1:
                raise ValueError(f"option {shown(name)}: say which method it is for, for example 'var.{name}'")
            name = f"{next(iter(named))}.{name}"
        if name.partition(".")[0] not in named:
            raise ValueError(f"option {shown(name)} fits no method of this run ({', '.join(sorted(named)) or 'none'})")
        shared[name] = value
    specs = []
    for text, (names, written) in zip(texts, entries):
        own = {name: value for name, value in shared.items() if name.partition(".")[0] in names}
        directory = re.sub(r"[^A-Za-z0-9.+_=,-]+", "-", text.replace(":", "-"))
        specs.append(MethodSpec(label=text, directory=directory, methods=resolve_methods(names, own | written)))
    directories = [spec.directory for spec in specs]
    if len(set(directories)) < len(directories) or not specs:
        raise ValueError(f"give at least one method and each only once; given: {', '.join(texts) or 'none'}")
    return specs
