"""vLLM's first model runner, which tells its logits processors who came, who left and who moved to another row."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from vlm_guard.serving.vllm.process import ProcessGuards
from vlm_guard.serving.vllm.rows import GuardedRequest, table_of
from vlm_guard.serving.vllm.runners.contrasts import OffersOnly, contrast_pairs
from vlm_guard.serving.vllm.runners.shared_tokens import share_next_tokens
from vlm_guard.serving.vllm.start.checkpoint_names import accept_new_names
from vlm_guard.serving.vllm.start.plugin import refuse_unregistered

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class GuardedRows(OffersOnly, LogitsProcessor):
    """Keeps the table of guarded requests, and contrasts the logits of pairs.

    Args:
        vllm_config: of the engine.
        device: of the logits.
        is_pin_memory: not used.
    """

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        refuse_unregistered(vllm_config)
        accept_new_names()
        self._guards = ProcessGuards.of(vllm_config)
        self._table = table_of(vllm_config.instance_id)
        self._table.clear()

    def is_argmax_invariant(self) -> bool:
        """Whether greedy answers stay the same; not with a contrast among the offers."""
        return not self._guards.declared.contrasts

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        """Follow the rows of the batch; called before every forward pass."""
        if batch_update is None:
            return
        requests = self._table.requests
        for row in batch_update.removed:
            requests.pop(row, None)
        for row, params, prompt, answer in batch_update.added:
            requests.pop(row, None)
            if self._guards.served.follows(params.extra_args) and prompt is not None:
                requests[row] = GuardedRequest.of(params, prompt, answer)
        self._table.change()
        for source, target, direction in batch_update.moved:
            self._table.move(source, target, direction == MoveDirectionality.SWAP)

    def apply(self, logits: Tensor) -> Tensor:
        """Contrast the logits [rows, V] of every pair, in both of its rows.

        Raises:
            RuntimeError: the branches of a pair are not at the same token, which must never be.
        """
        pairs = list(self._table.pairs(logits.shape[0]))
        share_next_tokens(pairs, logits.device)
        contrast_pairs(logits, pairs, self._table, self._guards.served)
        return logits
