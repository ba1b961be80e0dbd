"""The settings of an evaluation run: from a YAML file, with command-line flags on top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from vlm_guard.eval.run.decoding import Decoding
from vlm_guard.eval.tasks.shared.registry import DEFAULT_TASKS, task_class, task_names
from vlm_guard.eval.tasks.shared.settings import TaskSettings, flag_of, settings_with_flags

if TYPE_CHECKING:
    from vlm_guard.method.base import Method


def _field(default: Any, help: str, flag: str | None = None, **limits: Any) -> Any:
    """A setting with its help, and its option on the command line where that is not its name with dashes."""
    return Field(default, description=help, json_schema_extra={} if flag is None else {"flag": flag}, **limits)


class RunSettings(BaseModel):
    """Everything that can be set for a run; the names are those of the YAML file and (with dashes) of the flags.

    What a task can be told stands under the task's name (`pope: {parser: vcd}`); where it has a flag of its own, also
    by that flag's name beside the other settings (`parser: vcd`).
    """

    model_config = ConfigDict(extra="forbid")

    model: str = _field("builtin", "builtin, a folder or a Hugging Face id.")
    data: str = _field("scenes:common", "scenes:SPLIT[:SEED], coco:FOLDER, or what the task needs (vlm-guard tasks).")
    methods: list[str] = _field(
        ["none", "var"],
        "none, var, var+vcd, pai:gain=0.4+var, my_file.py, ...; repeat it, the first is the baseline.",
        "--method",
    )
    options: dict[str, Any] = _field(
        {},
        "Option of a method or task: var.move_fraction=0.5, pope.per_image=4; may be repeated.",
        "--set",
    )
    tasks: list[str] = _field(
        list(DEFAULT_TASKS), "What is asked: one or several with a comma (vlm-guard tasks lists them).", "--task"
    )
    count: int | None = _field(None, "Number of images.", ge=1)
    limit: int | None = _field(None, "Use at most this many of them.", ge=1)
    image_list: Path | None = _field(None, "File with the image ids to use, in order.")
    split: str | None = _field(None, "Of a COCO folder: val2014, val2017, ...")
    chair_mode: str = _field("pattern", "How objects are read from reference captions: pattern or wordnet.")
    template: str | None = _field(None, "Instead of the chat template: text with {image} and {prompt}.")
    decoding: Decoding = Decoding()
    seed: int = _field(0, "For sampling and for what tasks draw at random.", ge=0)
    batch_size: int = _field(16, "Prompts answered together.", ge=1)
    dtype: str = _field("auto", "auto, float32, bfloat16, float16.")
    device: str = _field("auto", "auto, cpu, cuda, cuda:1, ...")
    device_map: str | None = _field(None, "Spread the weights over devices: auto.")
    attention_backend: str | None = _field(None, "reference, torch or triton. (default: fastest)")
    revision: str | None = _field(None, "Commit, branch or tag of a Hugging Face id.")
    trust_remote_code: bool = _field(False, "Run Python code shipped with the checkpoint.", "--trust-remote-code")
    strict: bool = _field(False, "Stop at an unreadable image.", "--strict")
    resume: bool = _field(True, "Go on with the records in --out. (default: resume)", "--resume/--no-resume")
    resamples: int = _field(2000, "Bootstrap resamples.", ge=100)
    task_settings: dict[str, Any] = _field({}, "The settings of tasks, by task; also given under the task's name.", "")

    @model_validator(mode="before")
    @classmethod
    def _gather_task_settings(cls, values: Any) -> Any:
        """Bring what is said about tasks together under their names, checked."""
        if not isinstance(values, Mapping):
            return values
        rest = dict(values)
        given: dict[str, Any] = dict(rest.pop("task_settings", {}))
        for task, name, flagged in _flagged_settings():
            if flagged in rest:
                given.setdefault(task, {})
                given[task] = {**_as_mapping(given[task]), name: rest.pop(flagged)}
        for task in task_names():
            if task in rest:
                given[task] = {**_as_mapping(rest.pop(task)), **_as_mapping(given.get(task, {}))}
        known = {task: task_class(task).Settings for task in given if task in task_names()}
        fields: dict[str, Any] = {task: (settings, settings()) for task, settings in known.items()}
        # A model with a field for each task, so that mistakes are reported by task and setting ("pope.per_image").
        checked = create_model("TaskSettingsGiven", **fields)(**{task: given[task] for task in known})
        unknown = {task: value for task, value in given.items() if task not in known}
        return {**rest, **unknown, "task_settings": {task: getattr(checked, task) for task in known}}

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: list[str]) -> list[str]:
        unknown = [name for name in value if name not in task_names()]
        if unknown or not value:
            raise ValueError(f"tasks are {value}; allowed: {', '.join(task_names())}")
        return list(dict.fromkeys(value))

    def of_task(self, name: str) -> TaskSettings:
        """The settings of a task, its defaults where nothing was said about it."""
        return self.task_settings.get(name) or task_class(name).Settings()

    def __getattr__(self, name: str) -> Any:
        """A task's settings by the task's name, as the settings file gives them: `settings.pope.parser`."""
        if not name.startswith("_") and name in task_names():
            return self.of_task(name)
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic defines it for private attributes

    @property
    def image_count(self) -> int | None:
        """How many images are used: the smaller of `count` and `limit`."""
        given = [number for number in (self.count, self.limit) if number is not None]
        return min(given) if given else None


def _flagged_settings() -> list[tuple[str, str, str]]:
    """Task, name and top-level name of every task setting that has a flag of its own."""
    return [
        (task, name, flag.lstrip("-").replace("-", "_"))
        for task, settings in settings_with_flags().items()
        for name, field in settings.model_fields.items()
        if (flag := flag_of(field)) is not None
    ]


def _as_mapping(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def read_settings(path: Path | None, flags: Mapping[str, Any]) -> RunSettings:
    """Settings from a YAML file with flags on top; flags that are None were not given.

    Nested settings are given as dotted names, for example "pope.parser".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML mapping, or a setting is unknown or out of range.
    """
    content: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no settings file {path}")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold settings such as 'model: builtin', one a line")
    for name, value in flags.items():
        if value is None:
            continue
        target, parts = content, name.split(".")
        for part in parts[:-1]:
            target = target.setdefault(part, {})
        if name == "options":
            value = {**target.get("options", {}), **value}
        target[parts[-1]] = value
    _move_task_options(content)
    try:
        return RunSettings(**content)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            place = ".".join(map(str, item["loc"]))
            problems.append(
                f"{place}: {item['msg']}" + ("" if item["type"] == "missing" else f" (given {item['input']!r})")
            )
        raise ValueError("; ".join(problems) + _allowed(error)) from None


def _allowed(error: ValidationError) -> str:
    """What may be set where something unknown was: in the run, or in a task."""
    unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
    texts = []
    for place in dict.fromkeys(str(loc[0]) if len(loc) > 1 else "" for loc in unknown):
        if place in task_names():
            texts.append(f"; settings of {place}: {', '.join(task_class(place).Settings.model_fields)}")
        else:
            tasks = ", ".join(task_names())
            names = ", ".join(name for name in RunSettings.model_fields if name != "task_settings")
            texts.append(f"; allowed settings: {names}, and under their names those of the tasks {tasks}")
    return "".join(texts)


def _move_task_options(content: dict[str, Any]) -> None:
    """Take `pope.per_image` out of the options, which are of methods, and put it under the task's name."""
    options = content.get("options")
    if not isinstance(options, dict):
        return
    tasks = {name for name in options if isinstance(name, str) and name.partition(".")[0] in task_names()}
    for name in tasks:
        task, _, setting = name.partition(".")
        if not setting:
            raise ValueError(f"--set {name}=...: say which setting of the task, for example {task}.max_new_tokens")
        if not isinstance(content.setdefault(task, {}), dict):
            raise ValueError(f"{task} must hold settings such as '{{max_new_tokens: 8}}', given {content[task]!r}")
        content[task] = {**content[task], setting: options[name]}
    content["options"] = {name: value for name, value in options.items() if name not in tasks}


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
    from vlm_guard.method.registry import read_method_text, resolve_methods  # brings torch, which --help does without

    entries = [read_method_text(text) for text in texts]
    named = {name for names, _ in entries for name in names} - {"none"}
    shared: dict[str, Any] = {}
    for name, value in options.items():
        if "." not in name:
            if len(named) != 1:
                raise ValueError(f"option {name!r}: say which method it is for, for example 'var.{name}'")
            name = f"{next(iter(named))}.{name}"
        if name.partition(".")[0] not in named:
            raise ValueError(f"option {name!r} fits no method of this run ({', '.join(sorted(named)) or 'none'})")
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
