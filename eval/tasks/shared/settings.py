"""The settings of a task: one pydantic object, given on the command line, in a settings file, or in Python.

A setting with a flag has an option of its own on `vlm-guard eval`, and may be given at the top of a settings file by
the flag's name with underscores. Every setting may be given as `--set TASK.SETTING=VALUE` and, nested under the task's
name, in a settings file. The options of the command line are made without importing the tasks, so settings with flags
stand in a `settings.py` of the task's folder, which imports nothing heavy.
"""

import types
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

FilePath = Annotated[Path, Field(strict=False)]
"""A path, also as the text that a settings file holds."""


def setting(default: Any, help: str, *, flag: str | None = None, **limits: Any) -> Any:
    """A field of settings.

    Args:
        default: its default.
        help: one line on what it is.
        flag: its option on `vlm-guard eval`, such as "--suffix"; None for none of its own.
        limits: pydantic's limits, such as `ge=1`.
    """
    extra: dict[str, Any] = {} if flag is None else {"flag": flag}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def flag_of(field: FieldInfo) -> str | None:
    """The option that a field declares, or None."""
    extra = field.json_schema_extra
    return str(extra["flag"]) if isinstance(extra, Mapping) and "flag" in extra else None


class TaskSettings(BaseModel):
    """Settings that every task has. A task with more of them, or another limit, derives a class of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_new_tokens: int = setting(64, "Token limit of an answer.", ge=1)

    @classmethod
    def from_text(cls, name: str, value: Any) -> Any:
        """The value of a setting given as text, in the setting's type; the text as it is where it does not fit one.

        A list is given with commas between its items.
        """
        field = cls.model_fields.get(name)
        if field is None or not isinstance(value, str):
            return value
        if holds_list(field.annotation):
            return [part.strip() for part in value.split(",") if part.strip()]
        try:
            annotation: Any = field.annotation
            return TypeAdapter(annotation).validate_strings(value)
        except ValidationError:
            return value


def holds_list(annotation: Any) -> bool:
    """Whether a field of this type takes a list."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(holds_list(part) for part in get_args(annotation))
    return get_origin(annotation) is list


def settings_with_flags() -> dict[str, type[TaskSettings]]:
    """The settings of the tasks that have options of their own on the command line, by task, without their tasks."""
    found = {}
    for folder in import_module("vlm_guard.eval.tasks").__path__:
        for path in sorted(Path(folder).glob("*/settings.py")):
            if path.parent.name == "shared":
                continue
            module = import_module(f"vlm_guard.eval.tasks.{path.parent.name}.settings")
            found[path.parent.name] = next(
                item
                for item in vars(module).values()
                if isinstance(item, type) and issubclass(item, TaskSettings) and item is not TaskSettings
            )
    return found
