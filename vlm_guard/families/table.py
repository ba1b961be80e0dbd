"""Which model families work, said honestly: what the tests run, and on what.

No real checkpoint can be downloaded where this project is developed. "tested" therefore means: every invariant of
`tests/test_invariants.py` holds on a small randomly initialised model of the real architecture, with images.
"""

from typing import Any

from vlm_guard.families.family import ArchitectureEntry, architecture_entries

TESTED = "tested on random weights"
UNTESTED = "accepted, not tested"
REFUSED = "refused"


def model_rows() -> list[dict[str, Any]]:
    """One row per model type, from the entries: those that work, then the refused ones with the reason; JSON-able."""
    entries = architecture_entries()
    ordered = [entry for entry in entries if not entry.refused] + [entry for entry in entries if entry.refused]
    return [
        {
            "family": entry.family,
            "model_type": model_type,
            "text_models": list(entry.text_models),
            "zoo": list(entry.zoo),
            "note": entry.refused or entry.note,
            "status": _status(entry),
        }
        for entry in ordered
        for model_type in entry.model_types
    ]


def models_markdown() -> str:
    """The README's model table."""
    lines = ["| family | `model_type` | text backbones tested | status | note |", "|---|---|---|---|---|"]
    for row in model_rows():
        backbones = ", ".join(row["text_models"]) or "-"
        lines.append(f"| {row['family']} | `{row['model_type']}` | {backbones} | {row['status']} | {row['note']} |")
    return "\n".join(lines) + "\n"


def _status(entry: ArchitectureEntry) -> str:
    if entry.refused:
        return REFUSED
    return TESTED if entry.zoo else UNTESTED
