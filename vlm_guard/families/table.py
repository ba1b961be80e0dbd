"""Which model families work, said honestly: what the tests run, and on what.

No real checkpoint can be downloaded where this project is developed. "tested" therefore means: every invariant of
`tests/test_invariants.py` holds on a small randomly initialised model of the real architecture, with images. Any other
family is accepted when a model of it passes the check of `vlm_guard.self_check`, each time one is wrapped.
"""

from collections import Counter
from typing import Any

from vlm_guard.families.family import ArchitectureEntry, architecture_entries

TESTED = "tested on random weights"
CHECKED = "accepted after a check"
UNBUILT = "accepted after a check, not built here"
REFUSED = "refused"


def model_rows() -> list[dict[str, Any]]:
    """One row per model type, from the entries: those that work, then the refused ones with the reason; JSON-able."""
    entries = architecture_entries()
    ordered = [entry for entry in entries if not entry.refused] + [entry for entry in entries if entry.refused]
    return [
        {
            "family": entry.family,
            "model_type": model_type,
            "text_models": list(dict.fromkeys(entry.text_models)),
            "zoo": list(entry.zoo),
            "note": entry.refused or "; ".join(part for part in (entry.note, entry.unbuilt) if part),
            "status": _status(entry),
        }
        for entry in ordered
        for model_type in entry.model_types
    ]


def models_markdown() -> str:
    """The table of docs/models.md."""
    lines = ["| family | `model_type` | text backbones tested | status | note |", "|---|---|---|---|---|"]
    for row in model_rows():
        backbones = ", ".join(row["text_models"]) or "-"
        lines.append(f"| {row['family']} | `{row['model_type']}` | {backbones} | {row['status']} | {row['note']} |")
    return "\n".join(lines) + "\n"


def _status(entry: ArchitectureEntry) -> str:
    if entry.refused:
        return REFUSED
    if entry.zoo:
        return TESTED
    return UNBUILT if entry.unbuilt else CHECKED


def models_summary() -> str:
    """What the README says of the model table: how many of each status, and the tested families by name."""
    rows = model_rows()
    counts = Counter(row["status"] for row in rows)
    tested = dict.fromkeys(row["family"] for row in rows if row["status"] == TESTED)
    untested = counts[CHECKED] + counts[UNBUILT]
    return (
        f"{counts[TESTED]} model types are tested with pictures: {', '.join(tested)}. {untested} more are accepted "
        f"after a check, and {counts[REFUSED]} are refused with the reason.\n"
    )
