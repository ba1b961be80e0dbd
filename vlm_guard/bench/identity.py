"""Two promises of every method, checked on a real model: neutral parameters change nothing, and removal is exact."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.guard import wrap
from vlm_guard.method.base import Method
from vlm_guard.method.contrasting import IMPLAUSIBLE
from vlm_guard.method.registry import method_class

FLOAT32_PART = 2e-5
"""Sums in another order move float32 logits by up to this part of the largest logit; the tests use the same bound."""

ROUNDING_FACTOR = 4.0
"""How far a neutral guard may go beyond what a second row alone does to the plain model's logits."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Tokens [N] of a greedy answer and the logits [N, V] each was chosen from, float32 on the CPU."""

    tokens: Tensor
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class MethodCheck:
    """What was found out about one method.

    Attributes:
        method: its name.
        state: "passed", "failed", "refused" (it does not fit this model) or "not reached".
        reason: why it was refused, or what failed.
        identity: largest difference of a logit under neutral parameters to the plain model.
        allowed: what `identity` may be.
        removed: whether the plain answer came back bit for bit, or as close as the plain model is to itself.
        effect: largest difference of a logit under default options, tokens that a contrast cuts left out; 0 where the
            method leaves this prompt alone.
        idle: why it is 0, where the method knows.
    """

    method: str
    state: str
    reason: str = ""
    identity: float | None = None
    allowed: float | None = None
    removed: bool | None = None
    effect: float | None = None
    idle: str = ""

    def as_entry(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@torch.inference_mode()
def plain_answer(model: Any, inputs: Mapping[str, Any], tokens: int, row: int = 0) -> Answer:
    """What the model, as it is now, answers greedily in exactly `tokens` tokens; one row of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack([step[row] for step in output.logits]).float().cpu()
    return Answer(tokens=output.sequences[row, -tokens:].cpu(), logits=logits)


def difference(given: Answer, wanted: Answer, below: float = math.inf) -> float:
    """Largest difference of a logit up to the first step whose token differs, that step included.

    Behind it the two models read different texts. Infinities that are the same do not differ. Differences of `below`
    and more are left out: a contrast puts tokens that are implausible that far down.
    """
    differing = (given.tokens != wanted.tokens).nonzero()
    steps = len(wanted.tokens) if len(differing) == 0 else int(differing[0]) + 1
    mine, theirs = given.logits[:steps], wanted.logits[:steps]
    distance = (mine - theirs).masked_fill(mine == theirs, 0.0).abs()
    return float(distance[distance < below].max()) if below < math.inf else float(distance.max())


def rounding_of(model: Any, inputs: Mapping[str, Any], tokens: int) -> dict[str, float]:
    """What rounding alone does to the plain model's logits here.

    Returns:
        "repeated": the largest difference between two equal calls; 0 where the machine computes the same twice.
        "two_rows": between a prompt alone and the same prompt twice in a batch.
        "allowed": what a neutral guard may differ by.
    """
    first, again = (plain_answer(model, inputs, tokens) for _ in range(2))
    doubled = {name: _twice(value) for name, value in inputs.items()}
    try:
        two_rows = difference(plain_answer(model, doubled, tokens), first)
    except (RuntimeError, ValueError, IndexError):
        two_rows = 0.0  # inputs that cannot be doubled by stacking; the bound by the type of the weights remains
    largest = max(1.0, float(first.logits[first.logits.isfinite()].abs().max()))
    part = FLOAT32_PART if model.dtype == torch.float32 else torch.finfo(model.dtype).eps
    repeated = difference(again, first)
    return {
        "repeated": repeated,
        "two_rows": two_rows,
        "allowed": max(part * largest, ROUNDING_FACTOR * max(two_rows, repeated)),
    }


def _twice(value: Any) -> Any:
    return torch.cat((value, value)) if isinstance(value, Tensor) else value


def check_method(
    model: Any, processor: Any, name: str, inputs: Mapping[str, Any], tokens: int, rounding: Mapping[str, float]
) -> MethodCheck:
    """Wrap with default options, with neutral ones, and look whether the plain model is back afterwards.

    Args:
        model: not guarded.
        processor: its processor.
        name: the method.
        inputs: of one prompt.
        tokens: new tokens of every answer.
        rounding: from `rounding_of`.

    Returns:
        The check; a method that does not fit the model is "refused" with its own words. Nothing is raised.
    """
    before = plain_answer(model, inputs, tokens)
    try:
        method = method_class(name)
        answer, idle = _guarded(model, processor, method(), inputs, tokens)
        effect = difference(answer, before, IMPLAUSIBLE / 2)
        neutral = difference(_guarded(model, processor, method.neutral(), inputs, tokens)[0], before)
    except (ValueError, TypeError, ImportError) as error:
        return MethodCheck(method=name, state="refused", reason=str(error))
    except Exception as error:
        return MethodCheck(method=name, state="failed", reason=f"{type(error).__name__}: {error}")
    after = plain_answer(model, inputs, tokens)
    exact = torch.equal(after.tokens, before.tokens) and torch.equal(after.logits, before.logits)
    # A machine that does not compute the same twice cannot show bit-equality; then its own difference is the measure.
    removed = exact or (rounding["repeated"] > 0 and difference(after, before) <= 2 * rounding["repeated"])
    faults = []
    if not neutral <= rounding["allowed"]:
        faults.append(f"neutral parameters move a logit by {neutral:.2g}, allowed {rounding['allowed']:.2g}")
    if not removed:
        faults.append(f"after remove() a logit differs by {difference(after, before):.2g}")
    return MethodCheck(
        method=name,
        state="failed" if faults else "passed",
        reason="; ".join(faults),
        identity=neutral,
        allowed=rounding["allowed"],
        removed=removed,
        effect=effect,
        idle="" if effect else idle,
    )


def _guarded(model: Any, processor: Any, method: Method, inputs: Mapping[str, Any], tokens: int) -> tuple[Answer, str]:
    """The answer with a method, and why that method changes nothing on this model, where it knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard = wrap(model, processor, method)
    with guard:
        reasons = (bound.method.why_idle(guard.target) for bound in guard.methods)
        return plain_answer(model, inputs, tokens), "; ".join(filter(None, reasons))
