"""Does the package do on this machine what it promises? Kernels, identity, removal and speed, checked in minutes.

`vlm-guard verify` prints what is found here. Each part has a share of the time that is given; what a part did not
reach is listed as such, so that a short run is never taken for a whole one.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from vlm_guard.bench.identity import MethodCheck, check_method, plain_answer, rounding_of
from vlm_guard.bench.paired_timing import Seconds, summarise_pairs, summarise_plain, time_beside, time_call
from vlm_guard.families.architecture import describe_architecture, unwrap
from vlm_guard.families.profiles import find_profile
from vlm_guard.guard import wrap
from vlm_guard.kernels.benchmark.cases import Case, torch_cases, whole_grid
from vlm_guard.kernels.benchmark.correctness import check_many
from vlm_guard.kernels.edited_attention import TRITON_INSTALLED
from vlm_guard.method.model_choice import AUTO
from vlm_guard.method.registry import method_class, method_names, methods_for_model, resolve_methods

KERNEL_SHARE, METHOD_SHARE = 0.35, 0.75
"""When the kernels and when the methods must be done, as parts of the whole time; the rest is for the speed."""

NAMED_FIRST = ("var", "vhr", "carve", "paint", "lqcd")
"""The methods that are checked after the one that `auto` stands for, before the contrasts and all others."""

CONTROL = "plain, twice the rows"
PASSED, FAILED, INCOMPLETE = "passed", "failed", "incomplete"


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The time that is given.

    Attributes:
        seconds: all of it. now: reads the time, in seconds.
    """

    seconds: float
    now: Callable[[], float] = time.monotonic
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "begun", self.now())

    def used(self) -> float:
        """Seconds since the beginning."""
        return self.now() - self.begun

    def past(self, share: float) -> bool:
        """Whether this part of the time is over."""
        return self.used() > share * self.seconds


def kernel_parts() -> Iterator[tuple[str, str, list[tuple[Case, str]], str]]:
    """(backend, device, cases, why it cannot be checked) of every backend but the reference, which is the meaning."""
    gpu = torch.cuda.is_available()
    yield "torch", "cpu", torch_cases(), ""
    if gpu:
        yield "torch", "cuda", torch_cases(), ""
    if not TRITON_INSTALLED:
        yield "triton", "cuda", [], "Triton is not installed"
    elif not gpu:
        yield "triton", "cuda", [], "no CUDA device, where it would be used"
    else:
        yield "triton", "cuda", whole_grid(), ""


def check_kernels(clock: Clock, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every backend that is used here against the reference in float64, on cases in a fixed random order.

    Returns:
        One entry per backend and device: how many cases there are and were reached, which failed, the largest error
        as a part of what rounding allows, and the state "passed", "failed" or "absent".
    """
    parts = list(kernel_parts())
    present = [part for part in parts if not part[3]]
    found = []
    for backend, device, cases, absent in parts:
        entry: dict[str, Any] = {"backend": backend, "device": device, "cases": len(cases), "checked": 0}
        if absent:
            found.append(entry | {"state": "absent", "reason": absent})
            continue
        report(f"kernels: {backend} on {device}")
        share = KERNEL_SHARE * (present.index((backend, device, cases, absent)) + 1) / len(present)
        found.append(entry | _run_cases(cases, backend, torch.device(device), partial(clock.past, share)))
    return found


def _run_cases(
    cases: Sequence[tuple[Case, str]], backend: str, device: torch.device, late: Callable[[], bool]
) -> dict[str, Any]:
    shuffled = list(cases)
    random.Random(0).shuffle(shuffled)
    failures, worst, checked = [], 0.0, 0
    try:
        for comparison in check_many(shuffled, device, backend):
            checked += 1
            for name, error in comparison.errors.items():
                budget = comparison.budgets[name]
                worst = max(worst, error / budget if budget else float(error > 0))
            if not comparison.passed:
                failures.append(f"{comparison.case}, {comparison.dtype}: {comparison.errors} of {comparison.budgets}")
            if late():
                break
    except Exception as error:
        # A backend that cannot run here at all is a finding, too, and the other parts still say something.
        failures.append(f"{type(error).__name__}: {error}")
    state = FAILED if failures or not checked else PASSED
    return {"state": state, "checked": checked, "worst_part_of_budget": worst, "failures": failures}


def check_methods(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    methods: Sequence[str],
    tokens: int,
    clock: Clock,
    report: Callable[[str], None],
) -> tuple[dict[str, float], list[MethodCheck]]:
    """Identity and removal of every method, see `check_method`; those the time was too short for are "not reached".

    Returns:
        What rounding alone does to the plain model's logits, and one check per method.
    """
    rounding = rounding_of(model, inputs, tokens)
    checks = []
    for name in methods:
        if clock.past(METHOD_SHARE):
            checks.append(MethodCheck(method=name, state="not reached"))
            continue
        report(f"methods: {name}")
        checks.append(check_method(model, processor, name, inputs, tokens, rounding))
    return rounding, checks


def time_methods(
    model: Any,
    processor: Any,
    make_inputs: Callable[[int, int], Mapping[str, Any]],
    methods: Sequence[str],
    tokens: int,
    rounds: int,
    clock: Clock,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Guarded against plain `generate` in pairs, after a control: the plain model with two rows against one.

    Args:
        model: not guarded.
        processor: its processor.
        make_inputs: model inputs for so many rows and a seed.
        methods: those that can be applied.
        tokens: new tokens of every call.
        rounds: pairs of each, and one more that is not counted.
        clock: no method is begun once it has run out.
        report: called before each method.
    """
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    device = model.device

    def plain(number: int, rows: int = 1) -> Seconds:
        return time_call(model, make_inputs(rows, number), settings, device)

    def guarded(name: str, number: int) -> Seconds:
        with wrap(model, processor, name):
            return plain(number)

    calls: dict[str, Callable[[int], Seconds]] = {CONTROL: partial(plain, rows=2)}
    calls |= {name: partial(guarded, name) for name in methods}
    found: dict[str, Any] = {"entries": [], "not_reached": [], "rounds": rounds, "new_tokens": tokens}
    for name, call in calls.items():
        if clock.past(1.0):
            found["not_reached"].append(name)
            continue
        report(f"speed: {name}")
        pairs = [time_beside(number, plain, call) for number in range(rounds + 1)][1:]
        found.setdefault("plain", summarise_plain(pairs))
        found["entries"].append({"method": name, **summarise_pairs(pairs)})
    return found


def chosen_methods(given: Sequence[str] | None, model: Any) -> list[str]:
    """The methods to check: those given, or all but the one that does nothing, what people use most first.

    The time may not suffice for all, so the order is: what `auto` stands for on this model, the methods of
    `NAMED_FIRST`, the contrasts of logits, the others.
    """
    if given:
        return list(dict.fromkeys(given))
    names = [name for name in method_names() if name != "none"]
    contrasts = [name for name in names if "logits" in method_class(name).stations]
    ordered = dict.fromkeys([*_meant_by_auto(model), *NAMED_FIRST, *contrasts, *names])
    return [name for name in ordered if name in names]


def _meant_by_auto(model: Any) -> list[str]:
    """The methods that `auto` stands for on this model; none where it cannot be guarded, as each check then says."""
    try:
        inner = unwrap(model)
        found = methods_for_model(resolve_methods(AUTO), describe_architecture(inner), find_profile(inner.config))
    except ValueError:
        return []
    return [method.name for method in found]


def verify(
    model: Any,
    processor: Any,
    make_inputs: Callable[[int, int], Mapping[str, Any]],
    *,
    methods: Sequence[str] | None = None,
    seconds: float = 180.0,
    tokens: int = 12,
    rounds: int = 3,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Check kernels, methods and speed.

    Args:
        model: a vision-language model in evaluation mode, not guarded.
        processor: its processor.
        make_inputs: model inputs on the model's device for so many rows and a seed.
        methods: names; by default all but `none`, in the order of `chosen_methods`. A method that was named and
            does not fit the model is a failure.
        seconds: time for everything; a check that has begun is finished.
        tokens: new tokens of every call, at least 2.
        rounds: timed pairs of every method.
        report: called with a line before each step.

    Returns:
        "state" ("passed", "failed" or "incomplete": nothing failed, but the time did not suffice), "kernels",
        "rounding", "methods", "speed", "seconds" and "seconds_given", all ready for JSON.
    """
    clock = Clock(seconds=seconds)
    kernels = check_kernels(clock, report)
    names = chosen_methods(methods, model)
    inputs = make_inputs(1, 0)
    plain_answer(model, inputs, tokens)  # the first call of a process is unlike the others
    rounding, checks = check_methods(model, processor, inputs, names, tokens, clock, report)
    fitting = [check.method for check in checks if check.state == PASSED]
    speed = time_methods(model, processor, make_inputs, fitting, tokens, rounds, clock, report)
    return {
        "state": _state(kernels, checks, speed, named=bool(methods)),
        "kernels": kernels,
        "rounding": rounding,
        "methods": [check.as_entry() for check in checks],
        "speed": speed,
        "seconds": clock.used(),
        "seconds_given": seconds,
    }


def _state(kernels: list[dict[str, Any]], checks: list[MethodCheck], speed: dict[str, Any], named: bool) -> str:
    states = [check.state for check in checks]
    wrong = any(entry["state"] == FAILED for entry in kernels) or FAILED in states
    if wrong or (named and "refused" in states) or all(state == "refused" for state in states):
        return FAILED
    return INCOMPLETE if "not reached" in states or speed["not_reached"] else PASSED
