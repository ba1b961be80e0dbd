"""Every method with options that make it act on the tiny random models, for the invariants all methods share."""

from __future__ import annotations

from typing import Any

from vlm_guard.method import method_names

# Random models have no real sinks: low thresholds plant some, so that the edit is really exercised.
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "var": {
        "sink_dimensions": "0,5,9",
        "sink_threshold": 1.2,
        "min_visual_mass": 0.01,
        "min_content_share": 0.01,
        "layers": "all",
    },
    "zerotuning": {"factor": 0.3},
    "act": {"threshold": 0.05, "layers": "all"},
}


def names() -> list[str]:
    """The methods under test."""
    return method_names()


def options(name: str) -> dict[str, Any]:
    """Options that make `name` act on a tiny random model."""
    return OPTIONS.get(name, {})
