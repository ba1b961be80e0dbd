"""What `vlm-guard sweep` shows at its end: every setting with what it changes, in lines that fit the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from vlm_guard.eval.report.fitting import fitting_tables, folded_label
from vlm_guard.eval.tasks.shared.registry import task_class

USE_THIS = "▸ use this"


def sweep_tables(report: Mapping[str, Any], width: int) -> list[Table]:
    """Tables of a sweep: the plain model, then each method's settings, intervals below the changes they belong to.

    Args:
        report: the content of `sweep.json`.
        width: of the terminal, in characters. The setting to use is marked below its own label, so the mark stays with
            it where a narrow terminal cuts the columns into several tables.
    """
    names = {column.metric: column.label.rstrip(" ↑↓") for column in task_class(report["task"]).columns}
    decisive = (report["lower"], report["keep"])
    rows = [_row(report["baseline"], decisive, width, chosen=False)]
    for method in report["methods"]:
        rows += [_row(point, decisive, width, chosen=point["label"] == method["chosen"]) for point in method["points"]]
    head = ["setting"]
    for name in decisive:
        head += [names.get(name, name), "change"]
    return fitting_tables(head, rows, width)


def _row(point: Mapping[str, Any], decisive: tuple[str, str], width: int, *, chosen: bool) -> list[Text]:
    label = Text(folded_label(point["label"], width), style="bold")
    if chosen:
        label.append(f"\n{USE_THIS}", style="green")
    cells = [label]
    for name in decisive:
        cells += [Text(f"{100 * point[name]:.1f}"), _change(point, name)]
    return cells


def _change(point: Mapping[str, Any], name: str) -> Text:
    """What a metric changes, in points, with its interval below; empty for the plain model."""
    if f"{name}_change" not in point:
        return Text("")
    low, high = (100 * value for value in point[f"{name}_change_interval"])
    return Text.assemble(f"{100 * point[f'{name}_change']:+.1f}", "\n", (f"{low:+.1f}..{high:+.1f}", "dim"))
