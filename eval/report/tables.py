"""The numbers of a run or comparison as Markdown, CSV, JSON or HTML."""

import csv
import html
import io
import json
from collections.abc import Mapping
from typing import Any

from vlm_guard.eval.report.console import columns_of, difference_notes, difference_text, protocol_text, shown
from vlm_guard.eval.report.costs import cost_cells, cost_heads
from vlm_guard.eval.report.reading_notes import reading_notes
from vlm_guard.eval.run.results import MethodResult, RunResults
from vlm_guard.eval.tasks.shared.metric import Column
from vlm_guard.eval.tasks.shared.registry import task_class
from vlm_guard.untrusted.printed_text import csv_cell, markdown_text

FORMATS = ("markdown", "csv", "json", "html")


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


def render_table(results: RunResults, style: str) -> str:
    """The table in one of `FORMATS`.

    CSV and JSON hold every metric, one row per method and metric, as fractions; Markdown and HTML hold the main ones in
    percent, one row per method.

    Raises:
        ValueError: unknown format.
    """
    if style == "json":
        return json.dumps(long_rows(results), indent=2, ensure_ascii=False) + "\n"
    if style == "csv":
        return _csv(long_rows(results))
    if style == "markdown":
        return _markdown(results)
    if style == "html":
        return _html(results)
    raise ValueError(f"the table format is {style!r}; it must be one of {', '.join(FORMATS)}")


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _columns(results: RunResults) -> list[Column]:
    return [column for columns in columns_of(results).values() for column in columns]


def _cells(results: RunResults, method: MethodResult) -> list[str]:
    cells = []
    for column in _columns(results):
        estimate = method.estimate(column.metric)
        if estimate is None:
            cells.append("-")
            continue
        cell = shown(column.kind, estimate.value)
        if column.kind == "difference":
            cell += f" ({shown(column.kind, estimate.low)}..{shown(column.kind, estimate.high)})"
        difference = method.difference(column.metric)
        if difference is not None:
            value, interval = difference_text(column.kind, difference)
            cell += f" ({value}, {interval})"
        cells.append(cell)
    return cells


def caption_of(results: RunResults) -> str:
    """One sentence that says what the numbers are."""
    data = results.data
    parts = [f"{results.model['name']} ({results.model['dtype']}) on {data['name']}, {data['images']} images"]
    parts += [task_class(name).caption(described) for name, described in results.tasks.items()]
    parts.append(decoding_text(results.decoding))
    if results.protocol is not None:
        parts.append(protocol_text(results.protocol))
    return "; ".join(parts) + "."


def legend_of(results: RunResults) -> str:
    """One sentence on how to read the table."""
    level = round(100 * results.statistics["level"])
    explained = " ".join(difference_notes(results))
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


def _header(results: RunResults) -> list[str]:
    return ["method", *(column.label for column in _columns(results)), *cost_heads(results.methods)]


def _markdown(results: RunResults) -> str:
    header = _header(results)
    lines = [f"| {' | '.join(header)} |", f"|{'---|' + '---:|' * (len(header) - 1)}"]
    for method in results.methods:
        label = markdown_text(method.shown_label)
        lines.append(f"| {' | '.join([label, *_cells(results, method), *cost_cells(method.cost)])} |")
    return "\n".join(lines) + f"\n\n{markdown_text(' '.join(_sentences(results)))}\n"


def _html(results: RunResults) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in _header(results))
    body = ""
    for method in results.methods:
        cells = "".join(
            f"<td>{html.escape(text)}</td>" for text in [*_cells(results, method), *cost_cells(method.cost)]
        )
        body += f"<tr><th>{html.escape(method.shown_label)}</th>{cells}</tr>\n"
    caption = html.escape(" ".join(_sentences(results)))
    return f"<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
