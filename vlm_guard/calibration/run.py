"""Measuring everything a profile can hold, one measurement after the other, with progress."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm_guard.calibration.causal_tracing import calibrate_iri
from vlm_guard.calibration.image_layers import calibrate_image_layers
from vlm_guard.calibration.output_entropy import calibrate_zerotuning
from vlm_guard.calibration.sinks import calibrate_sinks
from vlm_guard.families.profiles import Fact

Prompts = Sequence[Mapping[str, Any]]
Progress = Callable[[str, int, int], None]

MEASUREMENTS = {
    "sinks": "attention sinks, for VAR",
    "layers": "layers that look at the image, for layers=image",
    "zerotuning": "strength of ZeroTuning",
    "iri": "recovery rates by causal tracing, for IRI",
}
"""What can be measured, and what for."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a calibration found.

    Attributes:
        facts: for the profile.
        refusals: the measurements that this model does not allow, with the reason.
    """

    facts: dict[str, Fact]
    refusals: dict[str, str]


def check_measurements(names: Sequence[str]) -> None:
    """Refuse names that are no measurement, before a model is loaded for them.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown or not names:
        raise ValueError(f"cannot calibrate {', '.join(unknown) or 'nothing'}; known are {', '.join(MEASUREMENTS)}")


def calibrate(
    model: nn.Module,
    processor: Any,
    descriptions: Prompts,
    questions: Prompts,
    *,
    only: Sequence[str] = tuple(MEASUREMENTS),
    progress: Progress | None = None,
) -> Calibration:
    """Run measurements; one that the model does not allow is reported and does not stop the others.

    Args:
        model: an unguarded vision-language model.
        processor: its processor.
        descriptions: inputs of the model with images, batch 1, that ask for a description.
        questions: the same for yes/no questions whose right answer is yes.
        only: out of `MEASUREMENTS`.
        progress: called with (measurement, finished steps, all steps).

    Raises:
        ValueError: an unknown measurement, or none of those asked for succeeded.
    """
    check_measurements(only)

    def report(name: str) -> Callable[[int, int], None]:
        return lambda done, total: None if progress is None else progress(name, done, total)

    run: dict[str, Callable[[], dict[str, Fact]]] = {
        "sinks": lambda: calibrate_sinks(model, descriptions, progress=report("sinks")),
        "layers": lambda: calibrate_image_layers(model, descriptions, progress=report("layers")),
        "zerotuning": lambda: calibrate_zerotuning(model, questions, progress=report("zerotuning")),
        "iri": lambda: calibrate_iri(model, processor, questions, progress=report("iri")),
    }
    facts: dict[str, Fact] = {}
    refusals: dict[str, str] = {}
    for name in only:
        try:
            facts |= run[name]()
        except ValueError as error:
            refusals[name] = str(error)
    if not facts:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in refusals.items()))
    return Calibration(facts=facts, refusals=refusals)
