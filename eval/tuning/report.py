"""A tuning in the terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from vlm_guard.eval.report.fitting import fitting_tables, folded_label
from vlm_guard.eval.tuning.choice import PLAIN, absent_share, present_things
from vlm_guard.eval.tuning.votes import LENS, SELF_CHECK
from vlm_guard.untrusted.printed_text import one_line

_NARROWEST = 20
"""Characters of a line of text, however narrow the terminal."""


def print_tuning(console: Console, report: Mapping[str, Any]) -> None:
    """Every setting with its estimated changes, the choice and, where labels exist, how true it is."""
    seen = report["pictures"]
    two = LENS in report["votes"]
    heads = ["setting", "absent, points", *(["by the lens"] if two else []), "present things", "words", ""]
    labels = [folded_label(item["setting"], console.width) for item in report["settings"]]
    # Why a setting may not be chosen is the only text among numbers: it is broken into lines beside the settings.
    room = max(_NARROWEST, console.width - 1 - max(cell_len(line) for label in labels for line in label.split("\n")))
    rows = []
    for label, item in zip(labels, report["settings"]):
        changes = item["changes"]
        cells = [label]
        if changes:
            cells.append(_interval(changes[absent_share(SELF_CHECK)], 100))
            cells += [f"{100 * changes[absent_share(LENS)]['value']:+.1f}"] if two else []
            cells.append(_interval(changes[present_things(SELF_CHECK)], 1))
        else:
            cells += [""] * (len(heads) - 3)
        cells.append(f"{item['estimates']['words']['value']:.1f}")
        told = "use this" if item["setting"] == report["chosen"] != PLAIN else "; ".join(item["objections"])
        rows.append([*(Text(cell) for cell in cells), Text(textwrap.fill(told, room), justify="left")])
    title = one_line(f"{report['model']} on {seen['count']} pictures of {seen['name']}")
    console.print(title, style="bold", markup=False, highlight=False)
    for table in fitting_tables(heads, rows, console.width):
        console.print(table)
    for label, reason in report["refused"].items():
        console.print(one_line(f"{label}: not tried, {reason}"), style="dim", markup=False, soft_wrap=True)
    console.print(f"\nchosen: {report['chosen']} ({report['reason']})", markup=False, highlight=False, soft_wrap=True)
    truth = report["labels"]
    if truth is not None:
        rank = truth["true_rank"]
        place = f"place {rank} of the {truth['keeping_recall']} settings that keep the recall"
        correlation = truth["spearman_chair_i"]
        correlated = "not defined" if correlation is None else f"{correlation:.2f}"
        console.print(
            f"by the annotations: {'it loses recall' if rank is None else place}, the best is {truth['best']}; rank "
            f"correlation of the estimate with CHAIR_i {correlated}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        "The estimates rank settings; they are no measurement of CHAIR."
        + (f" Saved in {report['profile']}" if report["profile"] else " Nothing was saved."),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _interval(change: Mapping[str, float], factor: float) -> str:
    return f"{factor * change['value']:+.1f} ({factor * change['low']:+.1f} to {factor * change['high']:+.1f})"
