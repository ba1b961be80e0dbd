"""`vlm-guard doctor`: what is installed, what will be used, and what is missing, also for a model."""

from typing import Annotated

import typer


def command(
    model: Annotated[
        str | None, typer.Argument(help="Also say what this model's processor lacks: a folder or a Hugging Face id.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a Hugging Face id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Report versions, devices, attention backends, profiles and optional parts.

    With a model, also what its processor needs and lacks here. Only its configuration is read, no weights.
    """
    import json

    from vlm_guard.environment import examine

    report = examine()
    if model is not None:
        from vlm_guard.builtin_model import BUILTIN_DIR
        from vlm_guard.families.processor_needs import processor_needs

        name = str(BUILTIN_DIR) if model == "builtin" else model
        report[model] = processor_needs(name, revision).describe()
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for section, entries in report.items():
        table = Table(box=None, show_header=False, title=section, title_justify="left", title_style="bold")
        table.add_column(style="dim")
        table.add_column()
        for key, value in entries.items():
            table.add_row(key, str(value))
        console.print(table)
