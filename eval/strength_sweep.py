"""A small sweep of each method's main strength, to choose a setting on other pictures than those it is judged by.

The main strength of a method is its first option with a neutral value. Tried are the default, and half and twice its
distance from the neutral value. Chosen is the setting with the lowest CHAIR_i among those that lose at most
`RECALL_SLACK` of recall against the plain model; if none does, the default stays.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vlm_guard.eval.models import load_model
from vlm_guard.eval.results import RunResults
from vlm_guard.eval.runner import Progress, evaluate
from vlm_guard.eval.settings import RunSettings
from vlm_guard.inspection import inspect_model
from vlm_guard.method import method_class
from vlm_guard.whole_files import write_atomically

FACTORS = (0.5, 1.0, 2.0)
RECALL_SLACK = 0.01
BASELINE = "none"


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The main strength of a method.

    Attributes:
        method: its name.
        option: the option's name.
        default: its default; None where calibration decides.
        values: what is tried, ascending.
    """

    method: str
    option: str
    default: float | None
    values: tuple[float, ...]

    def label(self, value: float) -> str:
        """The entry of an evaluation, `pai:gain=0.4`; the bare name for the default."""
        return self.method if value == self.default else f"{self.method}:{self.option}={value:g}"

    @property
    def labels(self) -> list[str]:
        """The entries of an evaluation, the default among them even where it has no number."""
        tried = [self.label(value) for value in self.values]
        return tried if self.method in tried else [self.method, *tried]


def main_strength(method: str) -> Strength | None:
    """The main strength of a method, or None where it has no option with a neutral value.

    Raises:
        ValueError: there is no such method.
    """
    for item in fields(method_class(method)):
        neutral = item.metadata.get("neutral")
        if neutral is None:
            continue
        low, high = item.metadata["range"]
        # Where calibration decides, half and twice the neutral value are tried (ZeroTuning's is 1, a factor).
        tried = (
            [neutral * factor for factor in FACTORS if factor != 1]
            if item.default is None
            else [neutral + factor * (item.default - neutral) for factor in FACTORS]
        )
        values = sorted({round(min(high, max(low, value)), 6) for value in tried} - {neutral})
        return Strength(method=method, option=item.name, default=item.default, values=tuple(values))
    return None


def methods_to_sweep(model: str, device: str) -> list[str]:
    """The methods that this model takes and that have a strength.

    The model is loaded to ask it, and is gone again afterwards: the sweep loads it as every evaluation does.
    """
    loaded = load_model(model, device=device)
    verdicts = inspect_model(loaded.model, loaded.processor)["methods"]
    ready = [row["method"] for row in verdicts if row["verdict"] == "ready"]
    return [name for name in ready if main_strength(name) is not None]


def sweep(
    settings: RunSettings, methods: Sequence[str], out: Path, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Run the sweep and write `sweep.json`; a second call with the same settings goes on where the first stopped.

    Args:
        settings: model, data and decoding; methods and tasks are replaced.
        methods: names of single methods.
        out: folder of the run.
        progress: told how far the run is.

    Returns:
        What is in `sweep.json`: every point, and the chosen entry of each method.

    Raises:
        ValueError: a method is unknown or has no strength.
    """
    strengths = []
    for name in methods:
        strength = main_strength(name)
        if strength is None:
            raise ValueError(f"{name} has no option with a neutral value, so there is no strength to vary")
        strengths.append(strength)
    labels = [BASELINE, *(label for strength in strengths for label in strength.labels)]
    results = evaluate(settings.model_copy(update={"methods": labels, "tasks": ["chair"]}), out, progress=progress)
    report = {
        "data": results.data["name"],
        "images": results.data["images"],
        "recall_slack": RECALL_SLACK,
        "baseline": _point(results, BASELINE),
        "methods": [_choice(results, strength) for strength in strengths],
        "environment": results.environment,
    }
    write_atomically(out / "sweep.json", json.dumps(report, indent=1) + "\n")
    return report


def _point(results: RunResults, label: str) -> dict[str, Any]:
    entry = next(method for method in results.methods if method.label == label)
    names = ("chair_i", "chair_s", "recall", "mean_words")
    point: dict[str, Any] = {"label": label} | {name: entry.estimates[name].value for name in names}
    changes = entry.difference_to_baseline
    return point | {f"{name}_change": changes[name].value for name in ("chair_i", "recall") if name in changes}


def _choice(results: RunResults, strength: Strength) -> dict[str, Any]:
    points = [_point(results, label) for label in strength.labels]
    kept = [point for point in points if point["recall_change"] >= -RECALL_SLACK]
    chosen = min(kept, key=lambda point: point["chair_i"])["label"] if kept else strength.method
    return asdict(strength) | {"points": points, "chosen": chosen}
