"""Which tokens of a model are attention sinks, and what makes them so, in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_SHOWN = 4
"""So many dimensions of a layer are printed; JSON has them all."""


def print_sinks(console: Console, facts: Mapping[str, Any]) -> None:
    """One row for each layer, and one sentence for each block that makes sinks."""
    rule = facts["rule"]
    title = f"attention sinks, over {facts['pictures']} pictures of {facts['data']}"
    table = Table(box=None, header_style="dim", title=title, title_justify="left", title_style="bold")
    for column in ("layer", "sinks a picture", "of the picture", "new here", "grown in this block", "by its MLP"):
        table.add_column(column, justify="right")
    table.add_column("marking dimensions")
    layers = {item["layer"]: item for item in facts["by_layer"]}
    grown = {item["block"]: item for item in facts["grown_in"]}
    for number in range(facts["depth"]):
        table.add_row(
            str(number), *_seen(layers.get(number)), *_made(grown.get(number)), _dimensions(layers.get(number))
        )
    console.print(table)
    for item in facts["grown_in"]:
        console.print(_sentence(item), highlight=False)
    if facts["without_dimension"]:
        console.print(f"{facts['without_dimension']:.1f} a picture are marked by no dimension.", highlight=False)
    if not any(item["sinks"] for item in facts["by_layer"]):
        console.print("No token is a sink.", highlight=False)
    console.print(
        f"A sink draws {100 * rule['drawn']:.0f} % of a layer's attention, {rule['times_even']:g} times an even share.",
        highlight=False,
    )


def _seen(item: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if item is None:
        return ("no attention", "", "")
    return (f"{item['sinks']:.1f}", f"{item['in_picture']:.1f}", f"{item['new']:.1f}")


def _made(item: Mapping[str, Any] | None) -> tuple[str, str]:
    if item is None:
        return ("", "")
    return (f"{item['sinks']:.1f}", "unknown" if item["mlp_share"] is None else f"{100 * item['mlp_share']:.0f} %")


def _dimensions(item: Mapping[str, Any] | None) -> str:
    if item is None:
        return ""
    more = ", ..." if len(item["dimensions"]) > _SHOWN else ""
    return ", ".join(map(str, item["dimensions"][:_SHOWN])) + more


def _sentence(item: Mapping[str, Any]) -> str:
    """What one block does."""
    who = f"{item['sinks']:.1f} a picture, {item['in_picture']:.1f} of them the picture's own tokens"
    stay = f"they draw from layer {item['first_layer']} on, in {item['layers_long']:.1f} layers on average"
    if item["block"] is None:
        return f"The embedding makes {who}; {stay}."
    share = "" if item["mlp_share"] is None else f"; {100 * item['mlp_share']:.0f} % of that is its MLP's work"
    return f"Layer {item['block']} makes {who}{share}; {stay}."
