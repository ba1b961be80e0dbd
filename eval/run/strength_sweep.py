"""A small sweep of each method's main strength, to choose a setting on other pictures than those it is judged by.

The main strength of a method is its first option with a neutral value. Tried are the default, and half and twice its
distance from the neutral value, each with the default and the further values that other options of the method name as
worth trying (a contrast's plausibility). A task says by which of its metrics to choose (`Task.sweep`): chosen is the
setting that lowers one most, by an interval that leaves out 0, among those that keep another, against the plain model;
there may be none, and there is none with few pictures. Captions are asked, CHAIR_i is to be lower, recall to be kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from vlm_guard.calibration.inspection import inspect_model
from vlm_guard.eval.run.models import load_config, load_model
from vlm_guard.eval.run.results import RunResults
from vlm_guard.eval.run.runner import Progress, evaluate
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.run.statistics import LEAST_PICTURES
from vlm_guard.eval.tasks.base import SweepRule
from vlm_guard.eval.tasks.shared.registry import DEFAULT_TASKS, task_class
from vlm_guard.families.profiles import Setting, find_profile
from vlm_guard.method.registry import method_class
from vlm_guard.whole_files import write_atomically

FACTORS = (0.5, 1.0, 2.0)
BASELINE = "none"


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The main strength of a method, and what is tried with it.

    Attributes:
        method: its name.
        option: the option's name.
        default: its default; None where calibration decides.
        values: what is tried, ascending.
        beside: values of other options, the default first, each tried with every strength.
    """

    method: str
    option: str
    default: float | None
    values: tuple[float, ...]
    beside: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The entries of an evaluation, `pai:gain=0.4`; the default, a bare name, among them even without a number."""
        tried = [self._label(values) for values in product(self.values, *self.beside.values())]
        return tried if self.method in tried else [self.method, *tried]

    def label(self, value: float, beside: Mapping[str, float]) -> str:
        """The entry of one strength, with other options at the given values and else at their defaults."""
        return self._label([value, *(beside.get(name, first) for name, (first, *_) in self.beside.items())])

    def _label(self, values: Sequence[float]) -> str:
        defaults = {self.option: self.default} | {name: first for name, (first, *_) in self.beside.items()}
        changed = [f"{name}={value:g}" for (name, default), value in zip(defaults.items(), values) if value != default]
        return f"{self.method}:{','.join(changed)}" if changed else self.method


def main_strength(method: str, settings: Mapping[str, Setting] | None = None) -> Strength | None:
    """The main strength of a method, or None where it has no option with a neutral value.

    Args:
        method: its name.
        settings: the values that the model's profile has for options; they count as its defaults.

    Raises:
        ValueError: there is no such method.
    """
    options = fields(method_class(method))
    defaults: dict[str, Any] = {option.name: option.default for option in options}
    defaults |= {name: setting.value for name, setting in (settings or {}).items()}
    item = next((item for item in options if item.metadata.get("neutral") is not None), None)
    if item is None:
        return None
    neutral, default = item.metadata["neutral"], defaults[item.name]
    low, high = item.metadata["range"]
    # Where calibration decides, half and twice the neutral value are tried (ZeroTuning's is 1, a factor).
    tried = (
        [neutral * factor for factor in FACTORS if factor != 1]
        if default is None
        else [neutral + factor * (default - neutral) for factor in FACTORS]
    )
    values = sorted({round(min(high, max(low, value)), 6) for value in tried} - {neutral})
    beside = {
        other.name: (defaults[other.name], *other.metadata["tried"])
        for other in options
        if other is not item and other.metadata.get("tried")
    }
    return Strength(method=method, option=item.name, default=default, values=tuple(values), beside=beside)


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
        What is in `sweep.json`: every point, and the chosen entry of each method, None where no setting helps.

    Raises:
        ValueError: a method is unknown or has no strength.
    """
    strengths = []
    profile = find_profile(load_config(settings.model, settings.revision, settings.trust_remote_code))
    for name in methods:
        strength = main_strength(name, None if profile is None else profile.settings_of(name))
        if strength is None:
            raise ValueError(f"{name} has no option with a neutral value, so there is no strength to vary")
        strengths.append(strength)
    labels = [BASELINE, *(label for strength in strengths for label in strength.labels)]
    task, rule = sweep_rule()
    results = evaluate(settings.model_copy(update={"methods": labels, "tasks": [task]}), out, progress=progress)
    if results is None:
        raise ValueError("a sweep writes its report in one process; start it without torchrun or accelerate launch")
    report = {
        "data": results.data["name"],
        "images": results.data["images"],
        "images_needed": LEAST_PICTURES,
        "task": task,
        "lower": rule.lower,
        "keep": rule.keep,
        f"{rule.keep}_slack": rule.slack,
        "baseline": _point(results, BASELINE, rule),
        "methods": [_choice(results, strength, results.data["images"]) for strength in strengths],
        "environment": results.environment,
    }
    write_atomically(out / "sweep.json", json.dumps(report, indent=1) + "\n")
    return report


def sweep_rule() -> tuple[str, SweepRule]:
    """The task a sweep asks, the first of those asked by default that can choose, and how it chooses."""
    found = ((name, task_class(name).sweep) for name in DEFAULT_TASKS)
    return next((name, rule) for name, rule in found if rule is not None)


def _point(results: RunResults, label: str, rule: SweepRule) -> dict[str, Any]:
    """A setting's metrics, and what the two that decide change against the plain model, each with its interval."""
    entry = next(method for method in results.methods if method.label == label)
    point: dict[str, Any] = {"label": label}
    for name in rule.shown:
        point[name] = entry.estimates[name].value
        if name in (rule.lower, rule.keep):
            point[f"{name}_interval"] = [entry.estimates[name].low, entry.estimates[name].high]
    for name in (rule.lower, rule.keep):
        if name in entry.difference_to_baseline:
            change = entry.difference_to_baseline[name]
            point[f"{name}_change"] = change.value
            point[f"{name}_change_interval"] = [change.low, change.high]
    return point


def _choice(results: RunResults, strength: Strength, images: int) -> dict[str, Any]:
    """The points of a method and the setting to use, None where no fall is sure or the pictures are too few."""
    _, rule = sweep_rule()
    points = [_point(results, label, rule) for label in strength.labels]
    kept = [
        point
        for point in points
        if point[f"{rule.lower}_change_interval"][1] < 0 and point[f"{rule.keep}_change"] >= -rule.slack
    ]
    enough = images >= LEAST_PICTURES
    chosen = min(kept, key=lambda point: point[rule.lower])["label"] if kept and enough else None
    return asdict(strength) | {"points": points, "chosen": chosen}
