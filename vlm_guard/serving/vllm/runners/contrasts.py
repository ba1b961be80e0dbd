"""Where two sets of logits become one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_guard.method.base import Method
from vlm_guard.serving.vllm.rows import PairedRows, RowTable
from vlm_guard.serving.vllm.served_guards import ServedGuards


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
