"""`vlm-guard eval`: score methods on a data set, side by side. Its options are made from the settings of a run."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vlm_guard.cli._setting_flags import SettingFlag


def command(
    out: Annotated[Path, typer.Option(help="Folder of the run: results.json and every answer.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; flags go on top.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show one prompt and the predicted time; keep nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> int:
    """Score methods with one or several tasks (CHAIR and POPE by default): paired intervals, speed and memory.

    vlm-guard tasks lists the tasks, what data each needs, and settings that have no option of their own here (--set).
    Run it again with the same --out to go on with a run that was stopped. To share the work, start the same options by
    "accelerate launch -m vlm_guard.eval" (GPUs, machines) or "torchrun --nproc-per-node 2 -m vlm_guard.eval" (CPU).
    """
    return run(out, config, {}, dry_run=dry_run, as_json=as_json)


def run(out: Path, config: Path | None, flags: dict[str, Any], *, dry_run: bool, as_json: bool) -> int:
    """Run with the settings that were given as options, by the settings' dotted names; None was not given."""
    from vlm_guard.eval.run.command import run_command
    from vlm_guard.eval.run.settings import read_settings
    from vlm_guard.method.method_text import parse_options

    # An option that may be repeated and was not given is an empty list.
    flags = {name: value for name, value in flags.items() if value not in (None, [], ())}
    if "options" in flags:
        flags["options"] = parse_options(flags["options"])
    if "tasks" in flags:
        flags["tasks"] = [name.strip() for name in flags["tasks"].split(",")]
    return run_command(read_settings(config, flags), out, dry_run=dry_run, as_json=as_json)


def command_with_settings() -> Callable[..., int]:
    """The command with an option for every setting; made only when it is called, since it needs pydantic."""
    settings = _setting_flags()

    def full(out: Path, config: Path | None, dry_run: bool, as_json: bool, **given: Any) -> int:
        flags = {flag.name: given[flag.parameter.name] for flag in settings}
        return run(out, config, flags, dry_run=dry_run, as_json=as_json)

    own = list(inspect.signature(command).parameters.values())
    parameters = [*own[:2], *(flag.parameter for flag in settings), *own[2:]]
    listed = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    # Typer reads the options from the signature and the annotations.
    vars(full)["__signature__"] = inspect.Signature(listed)
    full.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    full.__doc__ = command.__doc__
    return full


def _setting_flags() -> "list[SettingFlag]":
    from vlm_guard.cli._setting_flags import flags_of
    from vlm_guard.eval.run.settings import RunSettings
    from vlm_guard.eval.tasks.shared.settings import settings_with_flags

    found = list(flags_of(RunSettings))
    for task, settings in settings_with_flags().items():
        found += flags_of(settings, f"{task}.", f"Task {task}")
    return found
