"""`vlm-guard eval`: score methods on a data set, side by side. Its options are made from the settings of a run."""

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
    return run(out, config, dry_run, as_json, {})


def run(out: Path, config: Path | None, dry_run: bool, as_json: bool, flags: dict[str, Any]) -> int:
    """Run with the settings that were given as options, by the settings' dotted names."""
    from vlm_guard.cli._setting_flags import read_flags
    from vlm_guard.eval.run.command import run_command
    from vlm_guard.eval.run.settings import read_settings

    return run_command(read_settings(config, read_flags(flags)), out, dry_run=dry_run, as_json=as_json)


def command_with_settings() -> Callable[..., int]:
    """The command with an option for every setting; made only when it is called, since it needs pydantic."""
    from vlm_guard.cli._setting_flags import with_options

    return with_options(command, _setting_flags(), run, behind=2)


def _setting_flags() -> "list[SettingFlag]":
    from vlm_guard.cli._setting_flags import flags_of
    from vlm_guard.eval.run.settings import RunSettings
    from vlm_guard.eval.tasks.shared.settings import settings_with_flags

    found = list(flags_of(RunSettings))
    for task, settings in settings_with_flags().items():
        found += flags_of(settings, f"{task}.", f"Task {task}")
    return found
