"""The settings of an evaluation run: from a YAML file, with command-line flags on top."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from vlm_guard.eval.run.decoding import Decoding
from vlm_guard.eval.run.protocols import below, find_protocol
from vlm_guard.eval.tasks.shared.registry import DEFAULT_TASKS, task_class, task_names
from vlm_guard.eval.tasks.shared.settings import FilePath, TaskSettings, flag_of, settings_with_flags
from vlm_guard.method.model_choice import AUTO
from vlm_guard.untrusted.printed_text import shown
from vlm_guard.untrusted.yaml_files import read_yaml_mapping

if TYPE_CHECKING:
    from vlm_guard.method.base import Method

ENGINES = ("transformers", "vllm")
_PROBLEMS_SHOWN = 4
DTYPE_NAMES = ("float32", "bfloat16", "float16")
"""The weights' types that may be given by name."""


def _field(default: Any, help: str, flag: str | None = None, **limits: Any) -> Any:
    """A setting with its help, and its option on the command line where that is not its name with dashes."""
    return Field(default, description=help, json_schema_extra={} if flag is None else {"flag": flag}, **limits)


class RunSettings(BaseModel):
    """Everything that can be set for a run; the names are those of the YAML file and (with dashes) of the flags.

    What a task can be told stands under the task's name (`pope: {parser: vcd}`); where it has a flag of its own, also
    by that flag's name beside the other settings (`parser: vcd`). With a `protocol` its settings take the place of the
    defaults.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = _field("builtin", "builtin, smol, a folder or a Hugging Face id.")
    data: str = _field("scenes:common", "scenes:SPLIT[:SEED], coco:FOLDER, or what the task needs (vlm-guard tasks).")
    protocol: str | None = _field(
        None, "Settings of published numbers, such as opera-chair-500; others go on top (vlm-guard protocols)."
    )
    methods: list[str] = _field(
        ["none", "auto"],
        "none, auto, var+vcd, pai:gain=0.4+var, my_file.py, ...; repeat it, the first is the baseline.",
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
    image_list: FilePath | None = _field(None, "File with the image ids to use, in order.")
    split: str | None = _field(None, "Of a COCO folder: val2014, val2017, ..., or all.")
    chair_mode: str = _field("pattern", "How objects are read from reference captions: pattern or wordnet.")
    template: str | None = _field(None, "Instead of the chat template: text with {image} and {prompt}.")
    decoding: Decoding = Decoding()
    seed: int = _field(0, "For sampling and for what tasks draw at random.", ge=0)
    batch_size: int = _field(16, "Prompts answered together.", ge=1)
    dtype: str = _field("auto", "auto, float32, bfloat16, float16.")
    device: str = _field("auto", "auto, cpu, cuda, cuda:1, ...")
    device_map: str | None = _field(None, "Spread the weights over devices: auto.")
    attention_backend: str | None = _field(None, "reference, torch or triton. (default: fastest)")
    pack_weights: bool = _field(
        False, "CPU: lay linear layers out for oneDNN; faster on some processors, twice their memory.", "--pack-weights"
    )
    revision: str | None = _field(None, "Commit, branch or tag of a Hugging Face id.")
    trust_remote_code: bool = _field(False, "Run Python code shipped with the checkpoint.", "--trust-remote-code")
    strict: bool = _field(False, "Stop at an unreadable image.", "--strict")
    resume: bool = _field(True, "Go on with the records in --out. (default: resume)", "--resume/--no-resume")
    engine: str = _field("transformers", "Who computes: transformers, or vllm (docs/serving.md).")
    max_model_len: int | None = _field(
        None, "With --engine vllm: tokens of the longest prompt with its answer. (default: the model's)", ge=2
    )
    endpoint: str | None = _field(
        None, "Ask a server instead of loading a model: http://localhost:8000/v1 (docs/serving.md)."
    )
    endpoint_model: str | None = _field(None, "Which of the server's models. (default: its only one)")
    concurrency: int = _field(8, "Requests that wait for the server at once.", ge=1, le=1024)
    request_timeout: float = _field(600.0, "Seconds to wait for the server before a request is sent again.", gt=0)
    resamples: int = _field(2000, "Bootstrap resamples.", ge=100)
    task_settings: dict[str, Any] = _field({}, "The settings of tasks, by task; also given under the task's name.", "")

    @model_validator(mode="before")
    @classmethod
    def _gather_task_settings(cls, values: Any) -> Any:
        """Put the protocol's settings below, and bring what is said about tasks together under their names, checked."""
        if not isinstance(values, Mapping):
            return values
        rest = dict(values)
        if isinstance(rest.get("protocol"), str):
            rest = below(find_protocol(rest["protocol"]), rest)
        given: dict[str, Any] = dict(rest.pop("task_settings", {}))
        for task in task_names():
            if task in rest:
                given[task] = rest.pop(task)
        for task, name, flagged in _flagged_settings():
            if flagged in rest:
                value, known = rest.pop(flagged), _as_mapping(given.get(task, {}))
                # What is not settings is left as it is: the check below says so.
                given[task] = {**known, name: value} if isinstance(known, Mapping) else known
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
            raise ValueError(f"tasks are {shown(value)}; allowed: {', '.join(task_names())}")
        return list(dict.fromkeys(value))

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        if value not in ENGINES:
            raise ValueError(f"engines are {', '.join(ENGINES)}")
        return value

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
    content = {} if path is None else read_yaml_mapping(path)
    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        _put(content, name.split("."), value)
    _move_task_options(content)
    if isinstance(content.get("protocol"), str):
        find_protocol(content["protocol"])  # an unknown name is said by itself
    try:
        settings = RunSettings(**content)
    except ValidationError as error:
        items = error.errors(include_url=False)
        from_flags = all(".".join(map(str, item["loc"])).startswith(tuple(given) or "-") for item in items)
        where = "" if path is None or from_flags else f"{path}: "
        raise ValueError(where + "; ".join(_problems(items))) from None
    _refuse_idle(settings, given)
    return settings


def _refuse_idle(settings: RunSettings, given: Mapping[str, Any]) -> None:
    """Refuse an option of a task that is not asked, where one that is asked has the same setting without an option.

    Raises:
        ValueError: there is one: it would change nothing, while its name says otherwise.
    """
    for name in given:
        task, _, setting = name.partition(".")
        if not setting or task not in task_names() or task in settings.tasks:
            continue
        fields = {asked: task_class(asked).Settings.model_fields.get(setting) for asked in settings.tasks}
        meant = next((asked for asked, field in fields.items() if field is not None and flag_of(field) is None), None)
        if meant is not None:
            flag = flag_of(task_class(task).Settings.model_fields[setting]) or name
            raise ValueError(
                f"{flag} is an option of the task {task}, which is not asked; give --set {meant}.{setting}=..."
            )


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
            fields = _settings_at(item["loc"]).model_fields
            near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"{place}: there is no such setting{hint} (allowed settings: {', '.join(fields)})")
        else:
            given = "" if item["type"] == "missing" else f" (given {shown(item['input'])})"
            problems.append(f"{place}: {item['msg']}{given}")
    if len(items) > _PROBLEMS_SHOWN:
        problems.append(f"and {len(items) - _PROBLEMS_SHOWN} more")
    return problems


def _settings_at(place: Sequence[int | str]) -> type[BaseModel]:
    """The settings that an unknown one stands among: the run's, or a task's or the decoding's where it is nested."""
    outer = str(place[0]) if len(place) > 1 else ""
    if outer in task_names():
        return task_class(outer).Settings
    return Decoding if outer == "decoding" else RunSettings


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
        if isinstance(content.setdefault(task, {}), dict):  # anything else is refused when the settings are checked
            value = task_class(task).Settings.from_text(setting, options[name])
            content[task] = {**content[task], setting: value}
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
    from vlm_guard.method.index import refuse_part
    from vlm_guard.method.method_text import parse_method_text
    from vlm_guard.method.registry import method_names, read_method_text, resolve_methods

    known = [*method_names(), AUTO]
    for text in texts:
        for part in parse_method_text(text, known):
            refuse_part(part)  # without torch, which the methods themselves bring
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
    resolved = []
    for names, written in entries:
        own = {name: value for name, value in shared.items() if name.partition(".")[0] in names}
        resolved.append(resolve_methods(names, own | written))
    return [
        MethodSpec(label=text, directory=directory, methods=methods)
        for text, directory, methods in zip(texts, method_directories(texts), resolved)
    ]


def method_directories(texts: Sequence[str]) -> list[str]:
    """The folder of each entry of a comparison.

    Raises:
        ValueError: there is no entry, or two would share a folder.
    """
    directories = [re.sub(r"[^A-Za-z0-9.+_=,-]+", "-", text.replace(":", "-")) for text in texts]
    if len(set(directories)) < len(directories) or not directories:
        raise ValueError(f"give at least one method and each only once; given: {', '.join(texts) or 'none'}")
    return directories
