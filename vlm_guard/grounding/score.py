"""From the parts to one score between 0 and 1, and the fit that makes it a probability where labels exist.

    score = sigmoid(bias + sum over parts of weight * part)

The weights stand in the model's profile under `grounding_score`, for each set of parts that was fitted
("lens+self_check": {"bias": ..., "lens": ..., "self_check": ...}); `vlm-guard eval --task grounding` prints them.
Without them the mean of the log odds that `lens` and `self_check` stand for is taken as it is, and nobody has measured
how right such a score is. Below what score repair takes mentions out stands there too, under
`grounding_repair_below`, likewise by set of parts.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vlm_guard.families.profiles import Profile

FACT = "grounding_score"
THRESHOLD = 0.5
"""Of a verdict: as likely as not."""
REPAIR_FACT = "grounding_repair_below"
REPAIR_BELOW = 0.06
"""Of a model whose profile does not say below what score repair takes mentions out."""
_LARGEST = 30.0
_RIDGE = 1e-3
_STEPS = 50


def name_of(parts: Sequence[str]) -> str:
    """The name of a set of parts in a profile: "lens+self_check"."""
    return "+".join(sorted(parts))


def weights_of(profile: Profile | None, parts: Sequence[str]) -> dict[str, float] | None:
    """The fitted weights of a set of parts, with "bias"; None where the profile has none.

    Raises:
        ValueError: the profile's entry is not one.
    """
    fitted = None if profile is None else profile.value(FACT)
    name = name_of(parts)
    if fitted is None or name not in fitted:
        return None
    weights = fitted[name]
    if not isinstance(weights, dict) or set(weights) != {"bias", *parts}:
        raise ValueError(
            f"{FACT} of profile {profile.name if profile else ''!r} has for {name!r} {weights!r}; "
            f"it must hold a number for bias, {', '.join(sorted(parts))}"
        )
    return {key: float(value) for key, value in weights.items()}


def not_measured(threshold: float) -> str:
    """What is said of scores for which no profile has weights."""
    return (
        "no profile says how far the grounding scores of this model can be trusted: they are taken as they are; "
        f"the threshold {threshold} was not measured; 'vlm-guard eval --task grounding' measures both"
    )


def repair_below_of(profile: Profile | None, parts: Sequence[str]) -> float:
    """Below what score of a set of parts repair takes mentions out; `REPAIR_BELOW` where the profile does not say.

    Raises:
        ValueError: the profile's entry is no score.
    """
    measured = {} if profile is None else profile.value(REPAIR_FACT) or {}
    below = measured.get(name_of(parts), REPAIR_BELOW) if isinstance(measured, dict) else str(measured)
    if isinstance(below, bool) or not isinstance(below, int | float) or not 0 <= below <= 1:
        raise ValueError(
            f"{REPAIR_FACT} of profile {profile.name if profile else ''!r} has {below!r}; it must hold scores, 0 to 1"
        )
    return float(below)


def score_of(parts: Mapping[str, float], weights: Mapping[str, float] | None) -> float | None:
    """The score of a mention's parts; None where there is nothing to score it by.

    Args:
        parts: values by name, larger for things that are in the picture.
        weights: fitted ones, see `weights_of`; None takes the mean log odds of `lens` and `self_check`.
    """
    if weights is not None:
        return _sigmoid(weights["bias"] + sum(weights[name] * parts[name] for name in weights if name != "bias"))
    odds = []
    if "self_check" in parts:
        odds.append(parts["self_check"])
    if "lens" in parts:
        # The lens is a log-probability: log p - log(1 - p).
        odds.append(parts["lens"] - math.log(max(-math.expm1(parts["lens"]), math.exp(-_LARGEST))))
    return _sigmoid(sum(odds) / len(odds)) if odds else None


def fit_weights(parts: Sequence[Mapping[str, float]], grounded: Sequence[bool]) -> dict[str, float]:
    """Weights by logistic regression, for mentions whose truth is known.

    Args:
        parts: of every mention, all with the same names.
        grounded: whether its thing is in the picture.

    Raises:
        ValueError: too few mentions, or all of one kind.
    """
    names = sorted(parts[0]) if parts else []
    labels = np.asarray(grounded, dtype=float)
    if not names or not 0 < labels.sum() < len(labels):
        raise ValueError("weights can be fitted only to mentions of which some are in the picture and some are not")
    values = np.array([[part[name] for name in names] for part in parts], dtype=float)
    middle, spread = values.mean(0), values.std(0)
    spread[spread == 0] = 1.0
    features = np.column_stack((np.ones(len(values)), (values - middle) / spread))
    fitted = np.zeros(features.shape[1])
    penalty = _RIDGE * len(values) * np.diag([0.0] + [1.0] * len(names))
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(features @ fitted, -_LARGEST, _LARGEST)))
        gradient = features.T @ (chance - labels) + penalty @ fitted
        curvature = (features * (chance * (1 - chance) + 1e-9)[:, None]).T @ features + penalty
        step = np.linalg.solve(curvature, gradient)
        fitted -= step
        if np.abs(step).max() < 1e-9:
            break
    slopes = fitted[1:] / spread
    return {"bias": float(fitted[0] - slopes @ middle), **dict(zip(names, map(float, slopes)))}


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-_LARGEST, min(_LARGEST, value))))
