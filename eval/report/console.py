"""What a run shows in the terminal: a progress bar with the time left, and the table of results."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from vlm_guard.eval.run.results import Difference, Estimate, MethodResult, RunResults
from vlm_guard.eval.tasks.shared.metric import Column, Kind
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.untrusted.printed_text import one_line

ARROWS = {"better": "green", "worse": "red", "changed": "yellow", "unclear": "dim"}


def _bars(console: Console) -> RichProgress:
    """Bars with the estimated time left, which print nothing where the output is no terminal."""
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=3600,  # batches of large models take minutes
        transient=True,
        disable=not console.is_terminal,
    )


class MeasurementBars:
    """One bar for each measurement of a calibration; a context that shows them and takes them away."""

    def __init__(self, console: Console) -> None:
        self._bars = _bars(console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "MeasurementBars":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, measurement: str, done: int, total: int) -> None:
        """Move a measurement's bar to `done` of `total`."""
        if measurement not in self._tasks:
            self._tasks[measurement] = self._bars.add_task(measurement, total=total)
        self._bars.update(self._tasks[measurement], completed=done)


class ProgressBar:
    """A bar with the estimated time left. Prints nothing where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = _bars(console)
        self._task: TaskID | None = None

    def start(self, total: int, done: int) -> None:
        """Show the bar."""
        self._bar.start()
        self._task = self._bar.add_task("answers", total=total, completed=done)

    def advance(self, count: int, method: str) -> None:
        """Move the bar on."""
        if self._task is not None:
            self._bar.update(self._task, advance=count, description=method)

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()


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


def results_tables(results: RunResults) -> list[Table]:
    """A table of the methods' numbers for every task, and one of what they cost."""
    tables = [_metric_table(results, columns) for columns in columns_of(results).values()]
    tables.append(_cost_table(results.methods))
    return tables


def _metric_table(results: RunResults, columns: Sequence[Column]) -> Table:
    names = [column.metric for column in columns]
    images = {item.estimates[name].images for item in results.methods for name in names if name in item.estimates}
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(f"n = {' or '.join(map(str, sorted(images)))}", no_wrap=True)
    for column in columns:
        table.add_column(column.label, justify="right", overflow="fold")
    for method in results.methods:
        cells = [_value_cell(column.kind, method.estimates.get(column.metric)) for column in columns]
        missing = () if method.complete else ("\n", ("incomplete", "red"))
        table.add_row(Text.assemble((one_line(method.label), "bold"), *missing), *cells)
        if method.difference_to_baseline:
            cells = [
                _difference_cell(column.kind, method.difference_to_baseline.get(column.metric)) for column in columns
            ]
            table.add_row(Text(f"  − {one_line(results.baseline)}", style="dim"), *cells)
    return table


def _value_cell(kind: Kind, estimate: Estimate | None) -> Text:
    if estimate is None:
        return Text("-")
    interval = f"{shown(kind, estimate.low)}..{shown(kind, estimate.high)}"
    return Text.assemble(shown(kind, estimate.value), "\n", (interval, "dim"))


def _difference_cell(kind: Kind, difference: Difference | None) -> Text:
    if difference is None:
        return Text("-")
    value, interval = difference_text(kind, difference)
    return Text.assemble((value, ARROWS[difference.verdict]), "\n", (interval, "dim"))


def _cost_table(methods: Sequence[MethodResult]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for label in ("method", "seconds", "tokens", "tokens/s", "peak memory", "answered", "skipped", "cut off"):
        first = label == "method"
        table.add_column(label, justify="left" if first else "right", no_wrap=first, overflow="fold")
    for method in methods:
        counts = method.samples.values()
        table.add_row(
            Text(one_line(method.label), style="bold"),
            f"{method.cost.seconds:.1f}",
            f"{method.cost.tokens}",
            f"{method.cost.tokens_per_second:.0f}",
            f"{method.cost.peak_memory_bytes / 2**20:.0f} MiB",
            str(sum(item.answered for item in counts)),
            str(sum(item.skipped for item in counts)),
            str(sum(item.cut_off for item in counts)),
        )
    return table


def print_results(console: Console, results: RunResults) -> None:
    """Everything a person wants to know at the end of a run."""
    model, data = results.model, results.data
    title = one_line(f"{model['name']} on {data['name']}, {data['images']} images, {model['dtype']}")
    console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    for table in results_tables(results):
        console.print()
        console.print(table)
    level = round(100 * results.statistics["level"])
    console.print(
        f"\nIn percent (words: mean). Below each number its {level} % bootstrap interval over n images; "
        "differences are paired. ▲ ▼ the interval leaves out 0, ≈ it does not.",
        style="dim",
    )
    for sentence in difference_notes(results):
        console.print(sentence, style="dim", markup=False, highlight=False)
    for note in results.notes:
        console.print(f"note: {one_line(note)}", style="yellow", markup=False, soft_wrap=True)
    skipped = max(len(method.skipped_images) for method in results.methods)
    if skipped:
        console.print(f"{skipped} images could not be read and were skipped; results.json lists them.", style="yellow")
