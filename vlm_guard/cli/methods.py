"""`vlm-guard methods`: what can be applied, and with which options."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def command(
    name: Annotated[str | None, typer.Argument(help="Show one method with its options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """List the methods, or one method with its options and where their defaults come from."""
    import json

    from vlm_guard.method.index import described_method
    from vlm_guard.method.registry import method_names

    described = [described_method(item) for item in (method_names() if name is None else [name])]
    if as_json:
        print(json.dumps(described if name is None else described[0], indent=2))
        return
    from rich.console import Console

    console = Console()
    if name is None:
        _print_all(console, described)
    else:
        _print_one(console, described[0])


def _print_all(console: "Console", described: Sequence[Mapping[str, Any]]) -> None:
    """The methods, a line or a few each."""
    from vlm_guard.cli._narrow import is_narrow, print_entry

    rows = [
        {
            "method": item["name"],
            "acts on": ", ".join(item["stations"]),
            "needs": ", ".join(item["needs"]),
            "compiles": "yes" if item["compiles"] else "no",
            "what it does": item["summary"],
        }
        for item in described
    ]
    if is_narrow(console):
        for row in rows:
            needs = f", needs: {row['needs']}" if row["needs"] else ""
            compiles = ", decode steps compile" if row["compiles"] == "yes" else ""
            print_entry(
                console, row["method"], f"acts on: {row['acts on'] or '-'}{needs}{compiles}", (row["what it does"],)
            )
    else:
        _print_table(console, rows)
    console.print("\nOne method in detail: vlm-guard methods NAME", style="dim")
    console.print("auto is what a model's profile chooses: vlm-guard tune, vlm-guard inspect MODEL", style="dim")


def _print_one(console: "Console", item: Mapping[str, Any]) -> None:
    """A method with its options, and the settings that profiles have for single models."""
    from rich.text import Text

    from vlm_guard.cli._narrow import is_narrow, print_entry

    console.print(Text.assemble((item["name"], "bold"), f"  {item['summary']}\n{item['paper']}\n"))
    console.print(
        f"acts on: {', '.join(item['stations']) or '-'}   needs: {', '.join(item['needs']) or '-'}   "
        f"decode steps compile: {'yes' if item['compiles'] else 'no'}\n"
    )
    if is_narrow(console):
        for entry in item["options"]:
            print_entry(console, entry["name"], _option_facts(entry), (entry["help"], _source(entry["paper"])))
    else:
        shown = {"option": "name", "default": "default", "allowed": "allowed", "neutral": "neutral"}
        if any(entry["published"] != "" for entry in item["options"]):
            shown["published"] = "published"
        shown |= {"what it is": "help", "source": "paper"}
        _print_table(console, [{title: entry[key] for title, key in shown.items()} for entry in item["options"]])
    if not item["settings"]:
        return
    console.print("\nFor these models wrap takes other values, unless the option is given:\n")
    if is_narrow(console):
        for entry in item["settings"]:
            facts = f"{entry['option']}={entry['value']}"
            print_entry(console, entry["profile"], facts, (entry["note"], _source(entry["source"])))
    else:
        columns = ("profile", "option", "value", "source", "note")
        _print_table(console, [{column: entry[column] for column in columns} for entry in item["settings"]])


def _option_facts(entry: Mapping[str, Any]) -> str:
    """Type, default and allowed values of an option, in one line."""
    default = entry["default"] if entry["default"] != "" else "empty"
    facts = [entry["type"], f"default {default}"]
    if entry["allowed"] not in ("text", "true | false"):
        facts.append(entry["allowed"])
    facts += [f"{key} {entry[key]}" for key in ("neutral", "published") if entry[key] != ""]
    return ", ".join(facts)


def _source(text: str) -> str:
    return f"source: {text}" if text else ""


def _print_table(console: "Console", rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the names of their columns; the first column is never wrapped, and no word is cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for place, column in enumerate(rows[0] if rows else ()):
        table.add_column(column, no_wrap=place == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    console.print(table)
