"""What the heads of a model do, in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_heads(console: Console, facts: Mapping[str, Any]) -> None:
    """One row for each layer, and the lists that `heads=` takes."""
    title = f"heads, over {facts['pictures']} pictures of {facts['data']} and {facts['nouns']} nouns"
    table = Table(box=None, header_style="dim", title=title, title_justify="left", title_style="bold")
    columns = ["layer", "rest on a sink", "without picture", "sink's value", "look at picture", "best retrieval"]
    distances = facts["distance"]
    if distances is not None:
        columns.append("furthest head")
    for column in columns:
        table.add_column(column, justify="right")
    for index, layer in enumerate(facts["layers"]):
        rates, blind = facts["sink_rate"][index], facts["sink_rate_without_picture"][index]
        table.add_row(
            str(layer),
            f"{100 * _mean(rates):.0f} %",
            f"{100 * _mean(blind):.0f} %",
            f"{_mean(facts['value_norm_of_sinks'][index]):.2f}x",
            f"{100 * _mean(facts['image_share'][index]):.0f} %",
            f"{100 * max(facts['retrieval'][index]):.0f} %",
            *(() if distances is None else (f"{max(distances[index]):.1f}x",)),
        )
    console.print(table)
    console.print(f"retrieval by chance: {100 * facts['retrieval_chance']:.0f} %.", highlight=False)
    if distances is None:
        console.print(f"no distances from the centre: {facts['no_distance']}", highlight=False, markup=False)
    for name, listed in facts["lists"].items():
        console.print(f"heads={name}: {listed or 'none'}", highlight=False, markup=False, soft_wrap=True)
    if "profile" in facts:
        console.print(f"saved in {facts['profile']}", highlight=False, markup=False, soft_wrap=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
