"""Where two sets of logits become one, and what a request may ask for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_guard.method.base import Method
from vlm_guard.serving.vllm.declaration import Declaration
from vlm_guard.serving.vllm.rows import PairedRows, RowTable
from vlm_guard.serving.vllm.served_guards import ServedGuards

if TYPE_CHECKING:
    from vllm import SamplingParams


class OffersOnly:
    """Goes in front of a runner's class of logits processors: requests may name what is offered, and nothing else."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Refuse a request before it gets to the engine; the server answers it with HTTP 400.

        Raises:
            ValueError: it names something that is not offered.
        """
        declared = Declaration.of_environment()
        if declared is not None:
            declared.check(sampling_params.extra_args)


def contrast_pairs(logits: Tensor, pairs: Sequence[PairedRows], table: RowTable, guards: ServedGuards) -> None:
    """Contrast the logits [rows, V] of every pair, in both of its rows.

    Raises:
        RuntimeError: the branches of a pair are not at the same token, which must never be.
    """
    # Those of one offer at the same token of their answers are contrasted together.
    alike: dict[tuple[str, int], tuple[Method, list[PairedRows]]] = {}
    for pair in pairs:
        step = table.answered(pair.asked, pair.request)
        if step != table.answered(pair.shadow, pair.other):
            raise RuntimeError(
                f"the branches of a pair are out of step: {step} and {table.answered(pair.shadow, pair.other)} tokens"
            )
        served = guards.asked(pair.request.extra_args)
        if served is not None and served.contrast is not None:
            alike.setdefault((served.offer.name, step), (served.contrast.method, []))[1].append(pair)
    for (_, step), (method, group) in alike.items():
        found = mixed(logits, group, method, step)
        for rows in ([pair.asked for pair in group], [pair.shadow for pair in group]):
            logits[torch.tensor(rows, device=logits.device)] = found


def mixed(logits: Tensor, group: Sequence[PairedRows], method: Method, step: int) -> Tensor:
    """[pairs, V] what a method makes of the logits [rows, V] of pairs that are at the same token."""
    positive, negative = (
        logits[torch.tensor([getattr(pair, side) for pair in group], device=logits.device)].float()
        for side in ("positive", "negative")
    )
    return method.combine_logits(positive, negative, step).to(logits.dtype)
