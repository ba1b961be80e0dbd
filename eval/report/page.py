"""The results page: one HTML file with pictures, captions with their hallucinated mentions marked, and the numbers.

The page holds everything it needs (thumbnails, data, style, script) and loads nothing, so it can be mailed or archived.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm_guard.eval.report.compare import Comparison
from vlm_guard.eval.report.console import columns_of, protocol_text
from vlm_guard.eval.report.pictures import image_folder, picture_in
from vlm_guard.eval.report.reading_notes import reading_notes
from vlm_guard.eval.report.tables import caption_of, legend_of
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.run.results import Estimate, MethodResult, RunResults
from vlm_guard.eval.run.summary import MethodRecords
from vlm_guard.eval.tasks.shared.metric import Better, Kind, Metric
from vlm_guard.eval.tasks.shared.registry import task_class

_DATA_MARK = "/*REPORT_DATA*/"
_TITLE_MARK = "REPORT_TITLE"


def build_report(comparison: Comparison, *, images: Path | None = None, limit: int = 500) -> str:
    """The page as HTML text.

    Args:
        comparison: from `vlm_guard.eval.report.compare.compare_runs`.
        images: the data set's folder; by default where it was at the run. Pictures that are not found are left out,
            and the page says so.
        limit: at most this many images are shown, evenly spread over the run; the numbers are always those of all.

    Raises:
        ValueError: `limit` is below 1, a record's picture leads out of the folder, or a `run.json` is damaged.
    """
    if limit < 1:
        raise ValueError(f"the limit is {limit}; it must be at least 1")
    results = comparison.results
    folder = images if images is not None else image_folder(comparison)
    by_image = {label: _group(records) for label, records in comparison.records.items()}
    ids = [image_id for image_id in results.image_ids if any(image_id in groups for groups in by_image.values())]
    shown = _spread(ids, limit)
    data = {
        "title": f"{results.model['name']} on {results.data['name']}",
        "caption": caption_of(results),
        "legend": legend_of(results),
        "baseline": results.baseline,
        "created": results.created,
        "images": results.data["images"],
        "shown": len(shown),
        "notes": [*reading_notes(results), *results.notes],
        "metrics": _metric_rows(comparison),
        "methods": [_method(method) for method in results.methods],
        "items": [_item(image_id, results, by_image, folder) for image_id in shown],
        "protocol": _protocol(results),
    }
    template = files("vlm_guard.eval.report").joinpath("report_page.html").read_text(encoding="utf-8")
    # "<" must not appear inside the script element: a caption could hold "</script>".
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = data["title"].replace("&", "&amp;").replace("<", "&lt;")
    parts = {_TITLE_MARK: title, _DATA_MARK: content}
    # In one pass: a model's name that looks like a mark must not be filled in itself.
    return re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], template)


def _group(records: Iterable[Record]) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record["image_id"], []).append(record)
    return groups


def _spread(ids: Sequence[int], limit: int) -> list[int]:
    if len(ids) <= limit:
        return list(ids)
    return [ids[place * len(ids) // limit] for place in range(limit)]


def _metric_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The metrics with what the page needs to draw them: those of the tables in their order, then all others."""
    known: dict[str, dict[str, Metric]] = {}
    for records in comparison.records.values():
        read = MethodRecords(records)
        joined = [(task, metrics) for task, (metrics, _) in read.joined().items()]
        for task, metrics in [*read.metrics().items(), *joined]:
            known.setdefault(task, {}).update({metric.name: metric for metric in metrics})
    rows = []
    for task, columns in columns_of(comparison.results).items():
        main = {column.metric for column in columns}
        for column in columns:
            metric = known.get(task, {}).get(column.metric)
            better = column.better if metric is None else metric.better
            rows.append(_metric_row(task, column.metric, column.label.rstrip(" ↑↓"), column.kind, better, main=True))
        rows += [
            _metric_row(task, metric.name, metric.label, metric.kind, metric.better, main=False)
            for name, metric in known.get(task, {}).items()
            if name not in main
        ]
    return rows


def _metric_row(task: str, name: str, label: str, kind: Kind, better: Better, *, main: bool) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "better": better,
        "scale": 1 if kind == "length" else 100,
        "signed": kind == "difference",
        "main": main,
        "group": task_class(task).table_title,
    }


def _method(method: MethodResult) -> dict[str, Any]:
    return {
        "label": method.label,
        "estimates": _numbers(method.estimates),
        "differences": _numbers(method.difference_to_baseline),
        "cost": method.cost.model_dump(),
        "samples": {task: counts.model_dump() for task, counts in method.samples.items()},
        "options": [{"name": item["method"], **item["options"]} for item in method.methods],
        "skipped": len(method.skipped_images),
    }


def _numbers(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {
        name: item.model_dump() | {"has_interval": item.has_interval}
        for name, item in estimates.items()
        if item.defined
    }


def _item(
    image_id: int, results: RunResults, by_image: dict[str, dict[int, list[Record]]], folder: Path | None
) -> dict[str, Any]:
    """One image: its picture, its objects, and every method's caption and answers."""
    records = {label: groups.get(image_id, []) for label, groups in by_image.items()}
    first = next(record for items in records.values() for record in items)
    item: dict[str, Any] = {"id": image_id, "file": first["image"], "objects": None, "captions": {}, "questions": {}}
    for label, answers in records.items():
        for record in answers:
            if "error" in record:
                item["error"] = record["error"]
                continue
            entry = task_class(record["task"]).page_entry(record)
            if "caption" in entry:
                item["objects"] = entry["objects"]
                item["captions"][label] = entry["caption"]
                continue
            question = item["questions"].setdefault(
                record["sample"],
                {"text": entry["question"], "label": entry["label"], "strategies": entry["groups"], "answers": {}},
            )
            question["answers"][label] = [entry["answer"], record["text"]]
    item["questions"] = list(item["questions"].values())
    item["picture"] = picture_in(folder, first["image"], f"sample {first['sample']!r}")
    return item


def _protocol(results: RunResults) -> list[list[str]]:
    """What a reader needs to repeat the run, as pairs of name and value."""
    rows = [["model", _words(results.model)], ["data", _words(results.data)]]
    rows += [[f"task {name}", _words(task)] for name, task in results.tasks.items()]
    if results.protocol is not None:
        rows.append(["protocol", protocol_text(results.protocol)])
    rows += [
        ["template", _words(results.template)],
        ["decoding", _words(results.decoding)],
        ["statistics", _words(results.statistics)],
        ["versions", _words(results.environment["versions"])],
        ["hardware", _words(results.environment["hardware"])],
    ]
    if results.environment.get("git"):
        rows.append(["git", _words(results.environment["git"])])
    return rows


def _words(values: dict[str, Any]) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')}: {json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}"
        for name, value in values.items()
        if value is not None
    )
