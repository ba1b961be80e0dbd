"""Methods that an earlier run left in the same folder: their results are kept beside those of the new ones."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_guard.eval.run.records import Record, scan_records
from vlm_guard.eval.run.results import RESULTS_FILE, RUN_FILE, SAMPLES_FILE
from vlm_guard.eval.run.resume import differing_fields, other_fields

# What may differ between methods of one run: the method itself and what only it uses.
_OWN = ("methods", "profile", "attention_backend")


@dataclass(kw_only=True)
class EarlierMethod:
    """A method whose records lie in the folder of a run that does not ask it.

    Attributes:
        label: what tables call it.
        directory: its folder's name.
        fingerprint: everything that decided its answers.
        records: its records by sample key.
        sessions: when they were worked on.
        damaged: a sentence for every damaged line, which is left out.
        baseline: whether it is the one the others were compared with.
    """

    label: str
    directory: str
    fingerprint: dict[str, Any]
    records: dict[str, Record]
    sessions: list[dict[str, Any]]
    damaged: list[str] = field(default_factory=list)
    baseline: bool = False


def earlier_methods(out: Path, fingerprint: Mapping[str, Any], asked: Collection[str]) -> list[EarlierMethod]:
    """The methods in a run's folder besides those that are asked now, in the order of its results.

    Args:
        out: folder of the run.
        fingerprint: what decides the answers of this run.
        asked: directories of the methods of this run.

    Raises:
        ValueError: one of them was made with other data, tasks or decoding, so that its numbers cannot stand beside the
            new ones; the message names the differing field.
    """
    labels, baseline = _listed(out)
    found = []
    places = [path.parent for path in out.glob(f"*/{RUN_FILE}") if path.parent.name not in asked]
    order = {name: place for place, name in enumerate(labels)}
    for place in sorted(places, key=lambda path: (order.get(path.name, len(order)), path.name)):
        method = _read(place, labels.get(place.name, place.name))
        differing = differing_fields(_shared(method.fingerprint), _shared(json.loads(json.dumps(fingerprint))))
        if differing:
            name, before, now = differing[0]
            raise ValueError(
                f"{out} holds results of {method.label} with other settings: {name} was {before!r} and is now {now!r}"
                f"{other_fields(differing)}. "
                f"Numbers of both would stand in one table; give another --out, or remove {place} first"
            )
        first = baseline or next(
            (name for item in method.sessions[:1] for name in item.get("order_of_methods", [])), None
        )
        method.baseline = method.label == first
        found.append(method)
    return found


def _shared(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fingerprint.items() if name not in _OWN}


def _listed(out: Path) -> tuple[dict[str, str], str | None]:
    """From directory to label, and the baseline, as the results of the earlier run list them."""
    try:
        content = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
        return {method["directory"]: method["label"] for method in content["methods"]}, content["baseline"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None  # it never ended; the folders say themselves which method they are


def _read(place: Path, label: str) -> EarlierMethod:
    path = place / RUN_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        method = EarlierMethod(
            label=known.get("label", label),
            directory=place.name,
            fingerprint=known["fingerprint"],
            records={},
            sessions=known["sessions"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove {place}, or give another --out") from error
    for samples in [*sorted(place.glob("samples.rank-*.jsonl")), place / SAMPLES_FILE]:
        file = scan_records(samples)
        method.records |= file.records
        method.damaged += file.damaged
    return method
