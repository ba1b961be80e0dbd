"""`vlm-guard methods`: what can be applied, and with which options."""

from typing import Annotated

import typer


def command(
    name: Annotated[str | None, typer.Argument(help="Show one method with its options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """List the methods, or one method with its options and where their defaults come from."""
    import json

    from vlm_guard.method.index import described_method
    from vlm_guard.method.registry import method_names

    names = method_names() if name is None else [name]
    described = [described_method(item) for item in names]
    if as_json:
        print(json.dumps(described if name is None else described[0], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if name is None:
        table = Table(box=None, header_style="bold")
        for column in ("method", "acts on", "needs", "compiles", "what it does"):
            table.add_column(column)
        for item in described:
            compiles = "yes" if item["compiles"] else "no"
            stations, needs = ", ".join(item["stations"]), ", ".join(item["needs"])
            table.add_row(item["name"], stations, needs, compiles, item["summary"])
        console.print(table)
        console.print("\nOne method in detail: vlm-guard methods NAME", style="dim")
        console.print("auto is what a model's profile chooses: vlm-guard tune, vlm-guard inspect MODEL", style="dim")
        return
    item = described[0]
    console.print(f"[bold]{item['name']}[/bold]  {item['summary']}\n{item['paper']}\n")
    console.print(
        f"acts on: {', '.join(item['stations']) or '-'}   needs: {', '.join(item['needs']) or '-'}   "
        f"decode steps compile: {'yes' if item['compiles'] else 'no'}\n"
    )
    table = Table(box=None, header_style="bold")
    shown = {"option": "name", "default": "default", "allowed": "allowed", "neutral": "neutral"}
    if any(entry["published"] != "" for entry in item["options"]):
        shown["published"] = "published"
    shown |= {"what it is": "help", "source": "paper"}
    for column in shown:
        table.add_column(column, no_wrap=column == "option")
    for entry in item["options"]:
        table.add_row(*(str(entry[key]) for key in shown.values()))
    console.print(table)
    if item["settings"]:
        console.print("\nFor these models wrap takes other values, unless the option is given:\n")
        known = Table(box=None, header_style="bold")
        columns = ("profile", "option", "value", "source", "note")
        for column in columns:
            known.add_column(column)
        for entry in item["settings"]:
            known.add_row(*(str(entry[key]) for key in columns))
        console.print(known)
