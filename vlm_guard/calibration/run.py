"""Measuring everything a profile can hold, one measurement after the other, with progress.

What a method needs to know it measures itself (`Method.measure`); the layers that look at the image, which any method
may ask for, are measured here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from vlm_guard.calibration.image_layers import calibrate_image_layers
from vlm_guard.families.profiles import Fact
from vlm_guard.guard import wrap
from vlm_guard.method.base import Method
from vlm_guard.method.measure_call import MeasureCall, Prompts
from vlm_guard.method.registry import method_class, method_names

Progress = Callable[[str, int, int], None]
IMAGE_LAYERS = "layers"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a calibration found.

    Attributes:
        facts: for the profile.
        refusals: the measurements that this model does not allow, with the reason.
    """

    facts: dict[str, Fact]
    refusals: dict[str, str]


def measurements() -> dict[str, str]:
    """What can be measured, by name, and what for: what methods measure, and the layers that look at the image."""
    found = {name: purpose for _, name, purpose in _measuring()}
    return found | {IMAGE_LAYERS: "layers that look at the image, for layers=image"}


def check_measurements(names: Sequence[str]) -> None:
    """Refuse names that are no measurement, before a model is loaded for them.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    known = measurements()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"cannot calibrate {', '.join(unknown) or 'nothing'}; known are {', '.join(known)}")


def calibrate(
    model: nn.Module,
    processor: Any,
    descriptions: Prompts,
    questions: Prompts,
    *,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run measurements; one that the model does not allow is reported and does not stop the others.

    Args:
        model: an unguarded vision-language model.
        processor: its processor.
        descriptions: inputs of the model with images, batch 1, that ask for a description.
        questions: the same for yes/no questions whose right answer is yes.
        only: out of `measurements()`; all of them by default.
        progress: called with (measurement, finished steps, all steps).

    Raises:
        ValueError: an unknown measurement, or none of those asked for succeeded.
    """
    wanted = tuple(measurements()) if only is None else tuple(only)
    check_measurements(wanted)

    def report(name: str) -> Callable[[int, int], None]:
        return lambda done, total: None if progress is None else progress(name, done, total)

    def of_method(cls: type[Method], name: str) -> dict[str, Fact]:
        call = MeasureCall(
            model=model,
            processor=processor,
            descriptions=descriptions,
            questions=questions,
            guarded=partial(wrap, model, processor, cls.name),
            wrapped=partial(wrap, model, processor),
            progress=report(name),
        )
        return dict(cls.measure(call))

    run: Mapping[str, Callable[[], dict[str, Fact]]] = {
        name: partial(of_method, cls, name) for cls, name, _ in _measuring()
    } | {IMAGE_LAYERS: lambda: calibrate_image_layers(model, descriptions, progress=report(IMAGE_LAYERS))}
    facts: dict[str, Fact] = {}
    refusals: dict[str, str] = {}
    for name in wanted:
        try:
            facts |= run[name]()
        except ValueError as error:
            refusals[name] = str(error)
    if not facts:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in refusals.items()))
    return Calibration(facts=facts, refusals=refusals)


def _measuring() -> list[tuple[type[Method], str, str]]:
    """The methods that measure something, with what it is called and what it is for, ordered by that."""
    classes = (method_class(name) for name in method_names())
    found = [(cls, *cls.measurement) for cls in classes if cls.measurement is not None]
    return sorted(found, key=lambda item: item[1:])
