"""What the page opens with: the method and its options, and the example pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlm_guard.demo.method_options import guarding_methods
from vlm_guard.eval.data.datasets import EvaluationData, open_dataset
from vlm_guard.families.architecture import Architecture
from vlm_guard.families.profiles import Profile
from vlm_guard.method.model_choice import choice_of
from vlm_guard.method.registry import read_method_text, resolve_methods

FALLBACK = ("pai", "vcd", "zerotuning")
BROKEN, CROWDED = "scenes:broken", "scenes:crowded"
BROKEN_COUNT, CROWDED_COUNT = 200, 50


@dataclass(frozen=True, kw_only=True)
class OpeningSetting:
    """The choice that a visitor finds.

    Attributes:
        methods: names of the methods.
        options: their options by "method.option", where they are not the defaults.
    """

    methods: list[str]
    options: Mapping[str, Any] = field(default_factory=dict)


def opening_setting(architecture: Architecture, profile: Profile | None) -> OpeningSetting:
    """What `auto` stands for on a model, which the page opens with; where that is "none", a method to compare with.

    Of the built-in model that is the setting which a sweep over other scenes than the page's chose: of all that lose no
    recall the one that lowers CHAIR_i most (eval/results/sweep_common_32.json). It helps on both splits that it was
    tried on afterwards, too (eval/results/tuned_common.json, tuned_broken.json).
    """
    names = guarding_methods()
    written, settings = read_method_text(choice_of(architecture, profile).text)
    if not set(written) <= set(names):
        return OpeningSetting(methods=[next((name for name in FALLBACK if name in names), names[0])])
    made = {method.name: method for method in resolve_methods(written, settings)}
    options = {key: getattr(made[key.partition(".")[0]], key.partition(".")[2]) for key in settings}
    return OpeningSetting(methods=written, options=options)


def example_data() -> tuple[EvaluationData, dict[int, str]]:
    """Scenes of the broken split, and after every fourth of them a crowded one.

    Returns:
        The pictures. Those of the broken split have their own numbers, the crowded ones go on behind them. And, by the
        number of a crowded one, what it is called.
    """
    broken, crowded = open_dataset(BROKEN, BROKEN_COUNT), open_dataset(CROWDED, CROWDED_COUNT)
    behind = max(broken.objects)
    moved = {number: behind + number for number in crowded.images}
    names = {moved[number]: f"image {moved[number]} ({CROWDED}, image {number})" for number in moved}
    further = iter(crowded.images)
    ordered = {}
    for place, (number, path) in enumerate(broken.images.items(), 1):
        ordered[number] = path
        if place % 4 == 0 and (other := next(further, None)) is not None:
            ordered[moved[other]] = crowded.images[other]
    objects = broken.objects | {moved[number]: crowded.objects[number] for number in moved}
    captions = broken.captions | {moved[number]: crowded.captions[number] for number in moved}
    return replace(broken, images=ordered, objects=objects, captions=captions), names
