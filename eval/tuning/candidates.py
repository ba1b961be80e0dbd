"""The settings that `tune` tries: every method that the model takes, at half, once and twice its strength."""

from collections.abc import Sequence
from typing import Any

from vlm_guard.calibration.inspection import inspect_model
from vlm_guard.eval.run.strength_sweep import Strength, main_strength
from vlm_guard.families.profiles import find_profile
from vlm_guard.method.registry import method_class

# These take many passes for each picture, so they are tried where they are asked for.
SLOW_NEEDS = {"gradients"}
SLOW_STATIONS = {"inputs"}


def candidates(model: Any, processor: Any, methods: Sequence[str] | None) -> list[str]:
    """Lines of methods with their settings, as `wrap` takes them, without "none".

    Of a contrast each strength is tried with the strictest plausibility that its option names, and the default one; of
    other methods the strengths alone.

    Args:
        model: an unguarded model.
        processor: its processor.
        methods: names ("pai": its strengths are tried) or lines with a setting ("pai:gain=0.4": only that); by default
            all methods that the model takes and that answer about as fast as the plain model.

    Raises:
        ValueError: a method is unknown or has no strength.
    """
    profile = find_profile(model.config)
    names = list(methods) if methods else ready_methods(model, processor)
    found: list[str] = []
    for name in names:
        if ":" in name or "+" in name:
            found.append(name)
            continue
        strength = main_strength(name, None if profile is None else profile.settings_of(name))
        if strength is None:
            raise ValueError(f"{name} has no option with a neutral value, so there is no strength to try")
        found += _settings(strength)
    return list(dict.fromkeys(found))


def ready_methods(model: Any, processor: Any) -> list[str]:
    """The methods that the model takes, that have a strength and no slow part."""
    found = []
    for row in inspect_model(model, processor)["methods"]:
        cls = method_class(row["method"])
        slow = SLOW_NEEDS.intersection(cls.needs) or SLOW_STATIONS.intersection(cls.stations)
        if row["verdict"] == "ready" and not slow and main_strength(cls.name) is not None:
            found.append(cls.name)
    return found


def _settings(strength: Strength) -> list[str]:
    """Its labels at all strengths, further options at their default and, together, at the last value worth trying."""
    strict = {name: values[-1] for name, values in strength.beside.items()}
    texts = [strength.label(value, {}) for value in strength.values]
    if strict:
        texts += [strength.label(value, strict) for value in strength.values]
    return texts
