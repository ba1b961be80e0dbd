"""Options of a command from the fields of settings, so that a setting is written down once."""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True, kw_only=True)
class SettingFlag:
    """One option made from a setting.

    Attributes:
        name: of the setting, nested ones with dots ("pope.parser").
        parameter: the option as a parameter of a command's function; None means that it was not given.
    """

    name: str
    parameter: inspect.Parameter


def flags_of(settings: type[BaseModel], prefix: str = "", panel: str | None = None) -> Iterator[SettingFlag]:
    """The options for all fields of settings, nested settings too.

    A field's description is its help, to which its default is added. Its option is its name with dashes, or what stands
    under "flag" in its json_schema_extra; an empty flag gives it none.

    Args:
        settings: the class of the settings.
        prefix: what stands before the names, with its dot. Nested settings of tasks have options only where they
            declare a flag.
        panel: under which heading `--help` lists them.
    """
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from flags_of(field.annotation, f"{prefix}{name}.", panel)
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        flag = extra.get("flag", None if panel is not None else f"--{name.replace('_', '-')}")
        if not isinstance(flag, str) or not flag:
            continue
        option = typer.Option(flag, help=_help(field), rich_help_panel=panel)
        parameter = inspect.Parameter(
            flag.split("/")[0].lstrip("-").replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_option_type(name, field.annotation), option],
        )
        yield SettingFlag(name=f"{prefix}{name}", parameter=parameter)


def _help(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    text = field.description or ""
    if isinstance(default, bool) or default in (None, [], {}):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, list) else str(default)
    return f"{text} (default: {shown})"


def _option_type(name: str, annotation: Any) -> Any:
    """The type of an option: the setting's own or None. Lists and mappings are repeated; tasks are one text."""
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = _bare(next(part for part in get_args(annotation) if part is not type(None)))
    if name == "tasks":
        return str | None
    if get_origin(annotation) is dict:
        return list[str] | None
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        return list[Path] | None if _bare(item) is Path else list[str] | None
    return annotation | None


def _bare(annotation: Any) -> Any:
    """A type without what stands beside it in Annotated."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def with_options(
    command: Callable[..., Any], flags: Sequence[SettingFlag], run: Callable[..., int], *, behind: int
) -> Callable[..., int]:
    """A command with the options of settings among its own.

    Args:
        command: gives the parameters of its own and the help.
        flags: the options that are added, in this order.
        run: called with the command's own parameters by name, and `flags`: what was given, by the settings' names.
        behind: after how many of the command's own parameters the added ones stand.
    """

    def full(**given: Any) -> int:
        values = {flag.name: given.pop(flag.parameter.name) for flag in flags}
        # An option that may be repeated and was not given is an empty list.
        return run(**given, flags={name: value for name, value in values.items() if value not in (None, [], ())})

    own = list(inspect.signature(command).parameters.values())
    parameters = [*own[:behind], *(flag.parameter for flag in flags), *own[behind:]]
    listed = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    # Typer reads the options from the signature and the annotations.
    vars(full)["__signature__"] = inspect.Signature(listed)
    full.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    full.__doc__ = command.__doc__
    return full


def read_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as settings take them: methods' options apart, tasks one by one."""
    from vlm_guard.method.method_text import parse_options

    read = dict(flags)
    if "options" in read:
        read["options"] = parse_options(read["options"])
    if "tasks" in read:
        read["tasks"] = [name.strip() for name in read["tasks"].split(",")]
    return read


def flags_for_own_data() -> list[SettingFlag]:
    """The options of a run that make sense for pictures and questions of one's own, which have no labels."""
    from vlm_guard.eval.run.settings import RunSettings

    left_out = {"data", "tasks", "limit", "image_list", "split", "chair_mode", "resamples", "protocol"}
    return [flag for flag in flags_of(RunSettings) if flag.name not in left_out]
