"""What a run shows in the terminal at its end: tables that fit its width."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlm_guard.eval.report.costs import cost_cells, cost_heads
from vlm_guard.eval.report.fitting import fitting_tables, folded_label
from vlm_guard.eval.report.head_words import head_sentences
from vlm_guard.eval.report.reading_notes import reading_notes
from vlm_guard.eval.run.results import FEWEST_FOR_INTERVALS, Difference, Estimate, MethodResult, RunResults
from vlm_guard.eval.tasks.shared.metric import Column, Kind
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.untrusted.printed_text import one_line

NO_INTERVALS = f"There are no intervals for fewer than {FEWEST_FOR_INTERVALS} images."
ARROWS = {"better": "green", "worse": "red", "changed": "yellow", "unclear": "dim"}


def shown(kind: Kind, value: float) -> str:
    """A metric's value as tables show it: shares in percent, lengths with one decimal."""
    if kind == "difference":
        return shown_difference(kind, value)
    return f"{value:.1f}" if kind == "length" else f"{100 * value:.1f}"


def arrow(difference: Difference) -> str:
    """Up or down where the interval leaves out zero, else a sign for "no clear difference"."""
    if difference.verdict == "unclear":
        return "≈"
    return "▲" if difference.value > 0 else "▼"


def shown_difference(kind: Kind, value: float) -> str:
    """A difference with its sign, in percentage points except for lengths."""
    scaled = round(value if kind == "length" else 100 * value, 1)
    return f"{scaled + 0.0:+.1f}"  # adding zero turns -0.0 into 0.0


def difference_text(kind: Kind, difference: Difference) -> tuple[str, str]:
    """Difference with its arrow, and its interval: ("-2.1 ▼", "-3.9..-0.4")."""
    value, low, high = (shown_difference(kind, part) for part in (difference.value, difference.low, difference.high))
    return f"{value} {arrow(difference)}", f"{low}..{high}"


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """The protocol of a run, and whether it is as published."""
    changes = protocol["changes"]
    return f"protocol {protocol['name']}, " + (f"but {'; '.join(changes)}" if changes else "as published")


def columns_of(results: RunResults) -> dict[str, list[Column]]:
    """By task, the columns that some method has a value for."""
    tasks = dict.fromkeys([*results.tasks, *(task for method in results.methods for task in method.samples)])
    found = {
        task: [
            column
            for column in task_class(task).columns
            if any(column.metric in method.estimates for method in results.methods)
        ]
        for task in tasks
    }
    return {task: columns for task, columns in found.items() if columns}


def difference_notes(results: RunResults) -> list[str]:
    """A sentence for every shown column that is a difference to something else than the baseline as it is."""
    said = {task: fair["what"] for method in results.methods for task, fair in method.fair.items()}
    return [
        f'"{column.label.rstrip(" ↑↓")}" is {said[task]}.'
        for task, columns in columns_of(results).items()
        for column in columns
        if column.kind == "difference" and task in said
    ]


def results_tables(results: RunResults, width: int) -> list[Table]:
    """Tables of the methods' numbers for every task, and one of what they cost.

    Args:
        results: the results.
        width: of the terminal, in characters; a table with more columns than fit is cut into several, each with the
            methods in front, so that no number and no word of a head is broken.
    """
    tables = []
    for columns in columns_of(results).values():
        tables += metric_tables(results.methods, results.baseline, columns, width)
    return [*tables, *_cost_tables(results.methods, width)]


def metric_tables(methods: Sequence[MethodResult], baseline: str, columns: Sequence[Column], width: int) -> list[Table]:
    """Tables of these columns that fit a width: a row for every method, below it its difference to the baseline."""
    names = [column.metric for column in columns]
    images = {item.estimates[name].images for item in methods for name in names if name in item.estimates}
    rows: list[list[Text]] = []
    for method in methods:
        missing = () if method.complete else ("\n", ("incomplete", "red"))
        label = Text.assemble((folded_label(method.label, width), "bold"), *missing)
        rows.append([label, *(_value_cell(column.kind, method.estimate(column.metric)) for column in columns)])
        if method.difference_to_baseline:
            cells = [_difference_cell(column.kind, method.difference(column.metric)) for column in columns]
            rows.append([Text(f"  − {folded_label(baseline, width - 4)}", style="dim"), *cells])
    head = f"n = {' or '.join(map(str, sorted(images)))}"
    return fitting_tables([head, *(column.label for column in columns)], rows, width)


def _value_cell(kind: Kind, estimate: Estimate | None) -> Text:
    if estimate is None:
        return Text("-")
    if not estimate.has_interval:
        return Text(shown(kind, estimate.value))
    interval = f"{shown(kind, estimate.low)}..{shown(kind, estimate.high)}"
    return Text.assemble(shown(kind, estimate.value), "\n", (interval, "dim"))


def _difference_cell(kind: Kind, difference: Difference | None) -> Text:
    if difference is None:
        return Text("-")
    if not difference.has_interval:
        return Text(shown_difference(kind, difference.value))
    value, interval = difference_text(kind, difference)
    return Text.assemble((value, ARROWS[difference.verdict]), "\n", (interval, "dim"))


def _cost_tables(methods: Sequence[MethodResult], width: int) -> list[Table]:
    rows = []
    for method in methods:
        counts = method.samples.values()
        seconds, rate, memory = cost_cells(method.cost)
        cells = (
            seconds,
            f"{method.cost.tokens}",
            rate,
            memory,
            str(sum(item.answered for item in counts)),
            str(sum(item.skipped for item in counts)),
            str(sum(item.cut_off for item in counts)),
        )
        rows.append([Text(folded_label(method.label, width), style="bold"), *map(Text, cells)])
    seconds, rate, memory = cost_heads(methods)
    head = ["method", seconds, "tokens", rate, memory, "answered", "skipped", "cut off"]
    return fitting_tables(head, rows, width)


def has_intervals(methods: Sequence[MethodResult]) -> bool:
    """Whether any number stands on enough images for an interval."""
    estimates = [estimate for method in methods for estimate in method.estimates.values()]
    return not estimates or any(estimate.has_interval for estimate in estimates)


def legend_line(level: float, methods: Sequence[MethodResult]) -> str:
    """How to read the tables of a terminal that show these methods; `level` is that of the intervals, a fraction."""
    if not has_intervals(methods):
        return f"In percent (words: mean). {NO_INTERVALS}"
    return (
        f"In percent (words: mean). Below each number its {round(100 * level)} % bootstrap interval over n images; "
        "differences are paired. ▲ ▼ the interval leaves out 0, ≈ it does not."
    )


def print_results(console: Console, results: RunResults) -> None:
    """Everything a person wants to know at the end of a run."""
    model, data = results.model, results.data
    title = one_line(f"{model['name']} on {data['name']}, {data['images']} images, {model['dtype']}")
    console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    for table in results_tables(results, console.width):
        console.print()
        console.print(table)
    console.print(f"\n{legend_line(results.statistics['level'], results.methods)}", style="dim")
    heads = [column.label for columns in columns_of(results).values() for column in columns]
    for sentence in [*head_sentences([*heads, "cut off"]), *difference_notes(results)]:
        console.print(sentence, style="dim", markup=False, highlight=False)
    if results.protocol is not None:
        style = "yellow" if results.protocol["changes"] else "dim"
        console.print(one_line(protocol_text(results.protocol)), style=style, markup=False, highlight=False)
    for note in reading_notes(results):
        console.print(f"note: {one_line(note)}", style="yellow", markup=False, highlight=False)
    for note in results.notes:
        console.print(f"note: {one_line(note)}", style="yellow", markup=False, soft_wrap=True)
    skipped = max(len(method.skipped_images) for method in results.methods)
    if skipped:
        console.print(f"{unreadable_images(skipped)} and left out; results.json says why.", style="yellow")


def unreadable_images(count: int) -> str:
    """How many images could not be read, the same words wherever it is said."""
    return "1 image could not be read" if count == 1 else f"{count} images could not be read"
