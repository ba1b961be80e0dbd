"""How vLLM's Triton backend keeps keys and values, and attention over them by this project's kernel.

A cache is [blocks, G, block size, 2 D]: of each block, key-value head and token its key and then its value.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.edited_attention import AttentionProblem, KeyBlocks, edited_attention
from vlm_guard.kernels.torch_backend import attention_scores
from vlm_guard.kernels.triton_backend import unsupported_reason
from vlm_guard.serving.vllm.attention.block_attention import BlockCall, BlockEdit


@dataclass(frozen=True, eq=False)
class HeadBlocks:
    """Reads whole blocks.

    Attributes:
        part: keys of a block.
    """

    part: int

    def places(self, blocks: Tensor, length: int) -> Tensor:
        """From block numbers [N, n] to [N, m] int32, those that hold the first `length` keys."""
        return blocks[:, : -(-length // self.part)].to(torch.int32)

    def read(self, cache: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, G, K, D], copied side by side."""
        found = KeyBlocks(table=places, keys=places.shape[1] * self.part).gather(cache)
        key, value = found.chunk(2, dim=-1)
        return key, value


@dataclass(frozen=True, eq=False)
class KernelAttention:
    """Attends over blocks where they lie, without a copy of keys and values.

    Attributes:
        layout: of the cache's blocks.
    """

    layout: HeadBlocks

    def attend(self, call: BlockCall, edit: BlockEdit) -> Tensor:
        """The outputs [N, H, D] of a call with an edit."""
        problem = self._problem(call, edit.edit)
        # The kernel's limits are those of a model's sizes and numbers, so that a model meets them always or never.
        backend = "torch" if unsupported_reason(problem) else "triton"
        return edited_attention(problem, backend).output[:, 0]

    def scores(self, call: BlockCall) -> Tensor:
        """[N, H, 1, K] scores of a call, of a copy of the keys."""
        return attention_scores(self._problem(call, AttentionEdit()).gathered())

    def _problem(self, call: BlockCall, edit: AttentionEdit) -> AttentionProblem:
        key, value = call.cache.chunk(2, dim=-1)
        problem = call.problem(call.query[:, :, None], key, value, edit)
        return replace(problem, blocks=KeyBlocks(table=call.places, keys=call.mask.shape[-1]))
