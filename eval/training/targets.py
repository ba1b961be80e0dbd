"""What the built-in model should do, and how far a measurement is from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Target:
    """A range for one measured number, in percent.

    Attributes:
        name: As shown to people.
        path: Keys that lead to the number in a measurement, joined by dots; ``a - b`` is a difference of two.
        low: Least wanted value.
        high: Largest wanted value.
    """

    name: str
    path: str
    low: float = 0.0
    high: float = 100.0

    def value(self, measured: dict[str, Any]) -> float:
        """The number in a measurement."""
        parts = [_look_up(measured, part.strip()) for part in self.path.split(" - ")]
        return parts[0] if len(parts) == 1 else parts[0] - parts[1]

    def shortfall(self, measured: dict[str, Any]) -> float:
        """Distance to the range, 0 inside it."""
        value = self.value(measured)
        return max(0.0, self.low - value, value - self.high)


def _look_up(measured: dict[str, Any], path: str) -> float:
    found: Any = measured
    for key in path.split("."):
        found = found[key]
    return float(found)


TARGETS: tuple[Target, ...] = (
    Target(name="common: recall", path="common.detailed.recall", low=65),
    Target(name="common: CHAIR_i", path="common.detailed.chair_i", low=8, high=20),
    Target(name="common: POPE F1, random", path="common.presence.random.f1", low=93),
    Target(
        name="common: F1 random above popular",
        path="common.presence.random.f1 - common.presence.popular.f1",
        low=0.01,
    ),
    Target(
        name="common: F1 popular above adversarial",
        path="common.presence.popular.f1 - common.presence.adversarial.f1",
        low=0.01,
    ),
    Target(
        name="common: F1 random minus adversarial",
        path="common.presence.random.f1 - common.presence.adversarial.f1",
        low=8,
    ),
    Target(name="broken: recall", path="broken.detailed.recall", low=50),
    Target(name="broken: CHAIR_i", path="broken.detailed.chair_i", low=20, high=38),
    Target(name="common: repeated mentions", path="common.detailed.repeated", high=5),
    Target(name="broken: repeated mentions", path="broken.detailed.repeated", high=5),
    Target(name="common: valid yes/no answers", path="common.presence.valid", low=99),
    Target(name="broken: valid yes/no answers", path="broken.presence.valid", low=99),
)
"""Greedy decoding, "Please describe this image in detail." and POPE's wording."""

FULL_TARGETS: tuple[Target, ...] = (
    *TARGETS,
    Target(name="valid yes/no answers, worst suffix", path="wording.worst_valid", low=99),
    Target(name="unknown things get No", path="unknown.no", low=50.01),
    Target(name="a unicorn gets No", path="unknown.unicorn_no", low=50.01),
    Target(name="leading questions move answers", path="leading.yes_shift", low=2),
)
"""The targets and those that only the full measurement has."""


SMOL_TARGETS: tuple[Target, ...] = (
    Target(name="common: recall", path="common.detailed.recall", low=70),
    Target(name="common: CHAIR_i", path="common.detailed.chair_i", low=8, high=20),
    Target(name="broken: recall", path="broken.detailed.recall", low=60),
    Target(name="broken: CHAIR_i", path="broken.detailed.chair_i", low=18, high=36),
    Target(name="common: POPE F1, random", path="common.presence.random.f1", low=90),
    Target(
        name="common: F1 random above popular", path="common.presence.random.f1 - common.presence.popular.f1", low=0.01
    ),
    Target(
        name="common: F1 popular above adversarial",
        path="common.presence.popular.f1 - common.presence.adversarial.f1",
        low=0.01,
    ),
    Target(name="common: repeated mentions", path="common.detailed.repeated", high=5),
    Target(name="broken: repeated mentions", path="broken.detailed.repeated", high=5),
    Target(name="common: valid yes/no answers", path="common.presence.valid", low=99),
    Target(name="broken: valid yes/no answers", path="broken.presence.valid", low=99),
    Target(
        name="leading questions move accuracy",
        path="leading.accuracy_when_helped - leading.accuracy_when_misled",
        low=3,
    ),
)
"""The same for the model with a real language model inside."""


def total_shortfall(measured: dict[str, Any], targets: tuple[Target, ...] = TARGETS) -> float:
    """Sum of the distances of all numbers to their ranges, in percentage points; 0 when all are met."""
    return round(sum(target.shortfall(measured) for target in targets), 3)


def verdicts(measured: dict[str, Any], targets: tuple[Target, ...] = FULL_TARGETS) -> list[dict[str, Any]]:
    """One entry per target: value, range and whether it is met."""
    return [
        {
            "target": target.name,
            "value": round(target.value(measured), 2),
            "low": target.low,
            "high": target.high,
            "met": target.shortfall(measured) == 0,
        }
        for target in targets
    ]
