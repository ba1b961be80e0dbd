"""The numbers of a run or comparison as Markdown, LaTeX, CSV, JSON or HTML."""

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_guard.eval.report.bibtex import latex_text
from vlm_guard.eval.report.chosen_columns import COSTS, Cell, TableColumn, usual_columns
from vlm_guard.eval.report.console import NO_INTERVALS, difference_notes, has_intervals, protocol_text
from vlm_guard.eval.report.reading_notes import reading_notes
from vlm_guard.eval.run.results import MethodResult, RunResults
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.untrusted.printed_text import csv_cell, markdown_text

FORMATS = ("markdown", "latex", "csv", "json", "html")
DECODING_DIFFERS = "decoding differs"
"""Begins the note of a comparison of runs that chose tokens in different ways."""
_MINUS = re.compile(r"-(?=\d)")


def long_rows(results: RunResults) -> list[dict[str, Any]]:
    """One row per method and metric: value, interval, paired difference. Shares are fractions."""
    rows = []
    for method in results.methods:
        for name, estimate in method.estimates.items():
            difference = method.difference_to_baseline.get(name)
            row: dict[str, Any] = {
                "method": method.label,
                "metric": name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "images": estimate.images,
                "baseline": results.baseline if difference is not None else None,
            }
            for field in ("value", "low", "high", "verdict"):
                key = f"difference_{field}" if field != "verdict" else field
                row[key] = None if difference is None else getattr(difference, field)
            row["complete"] = method.complete
            row["defined"] = estimate.defined
            rows.append(row)
    return rows


def render_table(results: RunResults, style: str, columns: Sequence[TableColumn] | None = None) -> str:
    """The table in one of `FORMATS`.

    CSV and JSON hold every metric, one row per method and metric, as fractions; the others hold the main ones in
    percent, one row per method.

    Args:
        results: of a run or a comparison.
        style: one of `FORMATS`.
        columns: the only ones to show; by default those that the tasks show (CSV and JSON: all metrics).

    Raises:
        ValueError: unknown format, or columns of costs in CSV or JSON, which hold metrics.
    """
    if style in ("csv", "json"):
        rows = _rows_of(results, columns)
        return json.dumps(rows, indent=2, ensure_ascii=False) + "\n" if style == "json" else _csv(rows)
    chosen = usual_columns(results) if columns is None else columns
    if style == "markdown":
        return _markdown(results, chosen)
    if style == "latex":
        return _latex(results, chosen)
    if style == "html":
        return _html(results, chosen)
    raise ValueError(f"the table format is {style!r}; it must be one of {', '.join(FORMATS)}")


def _rows_of(results: RunResults, columns: Sequence[TableColumn] | None) -> list[dict[str, Any]]:
    rows = long_rows(results)
    if columns is None:
        return rows
    names = [column.name for column in columns]
    costs = [name for name in names if name in COSTS]
    if costs:
        raise ValueError(f"csv and json hold metrics, not {', '.join(costs)}; results.json has what answers took")
    kept = [row for row in rows if row["metric"] in names]
    order = {method.label: place for place, method in enumerate(results.methods)}
    return sorted(kept, key=lambda row: (order[row["method"]], names.index(row["metric"])))


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _texts(columns: Sequence[TableColumn], method: MethodResult) -> list[str]:
    texts = []
    for cell in (column.cell(method) for column in columns):
        interval = f" ({cell.interval})" if cell.interval else ""
        difference = f" ({cell.change})" if cell.change else ""
        texts.append(f"{cell.value}{interval}{difference}")
    return texts


def caption_of(results: RunResults) -> str:
    """One sentence that says what the numbers are."""
    data = results.data
    parts = [f"{results.model['name']} ({results.model['dtype']}) on {data['name']}, {data['images']} images"]
    parts += [task_class(name).caption(described) for name, described in results.tasks.items()]
    # What the first run did does not hold for all where decoding differs; the note says who did what.
    differing = [note for note in results.notes if note.startswith(DECODING_DIFFERS)]
    parts += differing or [decoding_text(results.decoding)]
    if results.protocol is not None:
        parts.append(protocol_text(results.protocol))
    return "; ".join(parts) + "."


def legend_of(results: RunResults) -> str:
    """One sentence on how to read the table."""
    level = round(100 * results.statistics["level"])
    explained = " ".join(difference_notes(results))
    if not has_intervals(results.methods):
        return f"In percent, words as a mean. {NO_INTERVALS} {explained}".rstrip()
    return (
        f"In percent, words as a mean. Differences to {results.baseline} are paired, with {level} % bootstrap "
        f"intervals over images; ▲ ▼ where the interval leaves out 0, ≈ where it does not. {explained}"
    ).rstrip()


def _sentences(results: RunResults) -> list[str]:
    """What stands below a table: what is missing, what the numbers are, how to read them."""
    missing = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in results.shortfalls()]
    missing += [f"{sentence}." for sentence in reading_notes(results)]
    return [*missing, caption_of(results), legend_of(results)]


def decoding_text(decoding: Mapping[str, Any]) -> str:
    """How tokens are chosen, in half a sentence."""
    if decoding["do_sample"]:
        temperature, top_p, seed = (decoding.get(name, "not said") for name in ("temperature", "top_p", "seed"))
        return f"sampled (temperature {temperature}, top-p {top_p}, seed {seed})"
    return f"{decoding['num_beams']} beams" if decoding["num_beams"] > 1 else "greedy"


def _markdown(results: RunResults, columns: Sequence[TableColumn]) -> str:
    header = ["method", *(column.label for column in columns)]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' + '---:|' * len(columns)}"]
    lines += [
        f"| {' | '.join([markdown_text(method.shown_label), *_texts(columns, method)])} |" for method in results.methods
    ]
    return "\n".join(lines) + f"\n\n{markdown_text(' '.join(_sentences(results)))}\n"


def _latex(results: RunResults, columns: Sequence[TableColumn]) -> str:
    """A tabular that needs no package, and behind it, as a comment, what the numbers are."""
    rows = [["method", *(latex_text(column.label) for column in columns)]]
    for method in results.methods:
        rows.append([latex_text(method.shown_label), *(_latex_cell(column.cell(method)) for column in columns)])
    head, *body = [f"{' & '.join(row)} \\\\" for row in rows]
    layout = f"l{'r' * len(columns)}"
    lines = [f"\\begin{{tabular}}{{{layout}}}", "\\hline", head, "\\hline", *body, "\\hline", "\\end{tabular}"]
    return "\n".join([*lines, *(f"% {latex_text(sentence)}" for sentence in _sentences(results))]) + "\n"


def _latex_cell(cell: Cell) -> str:
    small = [cell.interval] if cell.interval else []
    small += [cell.change] if cell.change else []
    value = _latex_numbers(cell.value)
    return f"{value} {{\\scriptsize ({'; '.join(map(_latex_numbers, small))})}}" if small else value


def _latex_numbers(text: str) -> str:
    """Numbers with their sign in mathematics, where a minus is one and not a hyphen."""
    return latex_text(_MINUS.sub("−", text))


def _html(results: RunResults, columns: Sequence[TableColumn]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ["method", *(column.label for column in columns)])
    body = ""
    for method in results.methods:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in _texts(columns, method))
        body += f"<tr><th>{html.escape(method.shown_label)}</th>{cells}</tr>\n"
    caption = html.escape(" ".join(_sentences(results)))
    return f"<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
