"""The columns of a table with a row for each method: those of the tasks, or the ones that are asked for by name."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vlm_guard.eval.report.console import columns_of, difference_text, shown, shown_difference
from vlm_guard.eval.report.costs import cost_cells, cost_heads
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.run.results import MethodResult, RunResults
from vlm_guard.eval.run.summary import MethodRecords
from vlm_guard.eval.tasks.shared.metric import Column, Metric

COSTS = ("seconds", "tokens_per_second", "peak_mib")
_ARROWS = {"lower": " ↓", "higher": " ↑"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one method has in a column.

    Attributes:
        value: as tables show it, "-" where it has none.
        interval: of a value that is a difference by itself, "" otherwise.
        difference: to the baseline, with its arrow; "" where there is none.
        difference_interval: its interval; "" for too few images, as all intervals.
    """

    value: str
    interval: str = ""
    difference: str = ""
    difference_interval: str = ""

    @property
    def change(self) -> str:
        """The difference with its interval."""
        return ", ".join(filter(None, (self.difference, self.difference_interval)))


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """One column.

    Attributes:
        name: of the metric, or out of `COSTS`.
        label: head of the column.
        cell: what a method has in it.
    """

    name: str
    label: str
    cell: Callable[[MethodResult], Cell]


def usual_columns(results: RunResults) -> list[TableColumn]:
    """The columns of all tasks, and behind them what the answers took."""
    columns = [_metric_column(column) for columns in columns_of(results).values() for column in columns]
    return [*columns, *_cost_columns(results)]


def chosen_columns(
    results: RunResults, records: Mapping[str, Sequence[Record]], names: Iterable[str]
) -> list[TableColumn]:
    """The columns of these names, in this order.

    Args:
        results: of a run or a comparison.
        records: of its methods by label.
        names: of metrics as `--format csv` lists them, or out of `COSTS`.

    Raises:
        ValueError: no method has a metric of such a name; the message suggests the nearest one.
    """
    known: dict[str, TableColumn] = {}
    for items in records.values():
        read = MethodRecords(items)
        for metrics in [*read.metrics().values(), *(metrics for metrics, _ in read.joined().values())]:
            known |= {metric.name: _metric_column(_column(metric)) for metric in metrics}
    # What the tasks themselves show comes last: their heads are shorter.
    known |= {column.name: column for column in usual_columns(results)}
    there = {name for method in results.methods for name in method.estimates} | {*COSTS}
    known = {name: column for name, column in known.items() if name in there}
    found = []
    for name in dict.fromkeys(part.strip() for part in names):
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"there is no column {name!r}.{hint} There are {', '.join(known)}")
        found.append(known[name])
    if not found:
        raise ValueError(f"name at least one column; there are {', '.join(known)}")
    return found


def _column(metric: Metric) -> Column:
    label = f"{metric.label}{_ARROWS.get(metric.better or '', '')}"
    return Column(metric=metric.name, label=label, kind=metric.kind)


def _metric_column(column: Column) -> TableColumn:
    def cell(method: MethodResult) -> Cell:
        estimate = method.estimate(column.metric)
        if estimate is None:
            return Cell(value="-")
        own = f"{shown(column.kind, estimate.low)}..{shown(column.kind, estimate.high)}"
        difference = method.difference(column.metric)
        if difference is None:
            value, interval = "", ""
        elif difference.has_interval:
            value, interval = difference_text(column.kind, difference)
        else:
            value, interval = shown_difference(column.kind, difference.value), ""
        return Cell(
            value=shown(column.kind, estimate.value),
            interval=own if column.kind == "difference" and estimate.has_interval else "",
            difference=value,
            difference_interval=interval,
        )

    return TableColumn(name=column.metric, label=column.label, cell=cell)


def _cost_columns(results: RunResults) -> list[TableColumn]:
    def cell(place: int, method: MethodResult) -> Cell:
        return Cell(value=cost_cells(method.cost)[place])

    return [
        TableColumn(name=name, label=label, cell=partial(cell, place))
        for place, (name, label) in enumerate(zip(COSTS, cost_heads(results.methods)))
    ]
