"""`vlm-guard doctor`: what is installed, what will be used, and what is missing."""

from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False) -> None:
    """Report versions, devices, attention backends, profiles and optional parts."""
    import json

    from vlm_guard.environment import examine

    report = examine()
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
