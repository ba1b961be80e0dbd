"""`vlm-guard tasks`: what can be measured, on which data, and with which settings."""

from typing import Annotated

import typer


def command(
    name: Annotated[str | None, typer.Argument(help="Show one task with its settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """List the tasks of vlm-guard eval, or one task with its data, metrics and settings."""
    import json

    from vlm_guard.eval.tasks.shared.table import describe_task, described_tasks, shown_default

    described = described_tasks() if name is None else [describe_task(name)]
    if as_json:
        print(json.dumps(described if name is None else described[0], indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, header_style="bold")
    if name is None:
        for column in ("task", "what is measured", "--data"):
            table.add_column(column)
        for item in described:
            table.add_row(item["name"], Text(item["help"]), Text(item["data"]))
        console.print(table)
        console.print("\nOne task in detail: vlm-guard tasks NAME", style="dim")
        return
    item = described[0]
    console.print(Text.assemble((item["name"], "bold"), f"  {item['help']}\n{item['source']}\n"))
    console.print(Text(f"--data {item['data']}\n"))
    console.print(Text(f"in tables: {', '.join(item['columns']) or '-'}\n"))
    table.add_column("setting", no_wrap=True)
    table.add_column("default")
    table.add_column("what it is")
    for entry in item["settings"]:
        cells = (entry["option"], shown_default(entry["default"]), entry["help"])
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
