"""Timing `generate` calls in pairs: every call has a plain one right beside it.

A machine whose speed drifts, or that others use as well, drifts for both calls of a pair, so the ratios bear it and
the seconds do not. The plain call comes first in one round and second in the next.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlm_guard.kernels.benchmark.measure import quantiles, ratio_quantiles

PHASES = ("prefill", "decode", "answer")
Seconds = dict[str, float]
"""Seconds of one call by phase: "prefill" to the first token, "decode" per later token, "answer" the whole call."""

_Timed = TypeVar("_Timed")
_AT_ONCE = 0.005
"""Below this share of a plain later token, later tokens took no time: the answer came in one piece."""


class TokenClock:
    """A streamer that notes when each token arrives; `generate` hands the tokens over on the CPU, already computed."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called with the prompt first, then with every token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called after the last token."""


def time_call(model: Any, inputs: Mapping[str, Any], settings: Mapping[str, Any], device: torch.device) -> Seconds:
    """Time one `generate` call.

    Args:
        model: guarded or not.
        inputs: its inputs, on its device.
        settings: further arguments of `generate`; they must lead to at least two tokens.
        device: waited for before the clock starts.
    """
    begun, (first, *later), _ = time_answer(model, inputs, settings, device)
    return {
        "prefill": first - begun,
        "decode": (later[-1] - first) / len(later),
        "answer": later[-1] - begun,
    }


def time_answer(
    model: Any, inputs: Mapping[str, Any], settings: Mapping[str, Any], device: torch.device
) -> tuple[float, list[float], Tensor]:
    """When a `generate` call began, when each token came, and the ids [B, P + T] of prompts and answers."""
    clock = TokenClock()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    ids = model.generate(**inputs, **settings, streamer=clock)
    return begun, clock.times[1:], ids  # the first arrival is the prompt


def time_beside(number: int, plain: Callable[[int], _Timed], other: Callable[[int], _Timed]) -> tuple[_Timed, _Timed]:
    """One pair: (the plain call, the other one), in the order that belongs to round `number`, which both are given."""
    if number % 2:
        first = plain(number)
        return first, other(number)
    second = other(number)
    return plain(number), second


def summarise_pairs(pairs: list[tuple[Seconds, Seconds]]) -> dict[str, Any]:
    """By phase: quantiles of the other call's seconds, and of the ratios to the plain call beside it."""
    found: dict[str, Any] = {}
    for phase in PHASES:
        beside, times = ([pair[side][phase] for pair in pairs] for side in (0, 1))
        found[phase] = quantiles(times) | {"ratio_to_unguarded": ratio_quantiles(times, beside)}
    return found


def comes_at_once(entry: Mapping[str, Any]) -> bool:
    """Whether a method's answers come in one piece (beam search), so that only the whole answer can be compared.

    Args:
        entry: as `summarise_pairs` makes them.
    """
    ratio = entry["decode"].get("ratio_to_unguarded")
    return ratio is not None and ratio["p80"] < _AT_ONCE


def summarise_plain(pairs: list[tuple[Seconds, Seconds]]) -> dict[str, Any]:
    """By phase: quantiles of the plain calls' seconds."""
    return {phase: quantiles([plain[phase] for plain, _ in pairs]) for phase in PHASES}
