"""vLLM's attention backend for the CPU, with the guarded rows of every step computed anew."""

import os
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from vlm_guard.serving.vllm.attention.block_attention import BlockAttention
from vlm_guard.serving.vllm.attention.block_layout import DecodeAttention
from vlm_guard.serving.vllm.backends.cpu_blocks import CPUBlocks
from vlm_guard.serving.vllm.backends.guarded_layers import GuardedForward, GuardedSteps

COMPILE = "VLM_GUARD_COMPILE"
"""The environment variable that is 0 where decoded rows are not to be compiled."""


class GuardedCPUBuilder(CPUAttentionMetadataBuilder):
    """Plans, once a step, which rows are guarded."""

    # What is kept in Python about a step must not be frozen into a captured graph.
    isa: str
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps = GuardedSteps(self.vllm_config, CPUBlocks(self.num_kv_heads, self.block_size), self.block_size)
        shape = self.num_kv_heads, self.block_size, self.head_dim, self.dtype
        if self.isa == "amx" and not reads_layout(*shape, self.isa):
            # AMX packs keys and values for its tiles; the vector kernel keeps them as they are.
            self.isa = "vec"
            self._set_isa_to_layers(self.layer_names)
        if not reads_layout(*shape, self.isa):
            raise ValueError(
                f"vLLM keeps keys and values of {str(self.dtype).removeprefix('torch.')} in a layout of this "
                f"processor's own ({self.isa}) that guards cannot read; use --dtype float32"
            )

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        """VLLM's description of a step, with the plan of what is guarded in it."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if not (self.is_cross_attention or self.is_encoder_only_attention):
            self._steps.plan(metadata, common_attn_metadata)
        return metadata


class GuardedCPUAttention(GuardedForward, CPUAttentionBackendImpl):
    """One attention layer."""

    def attention_over(self, block_size: int) -> DecodeAttention:
        """That of all layers with these sizes."""
        return block_attention(self.num_heads, self.num_kv_heads, block_size)


class GuardedCPUBackend(CPUAttentionBackend):
    """The backend that `plugin.register` puts in the place of vLLM's."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """The attention layer."""
        return GuardedCPUAttention

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        """The planner of steps."""
        return GuardedCPUBuilder


@cache
def block_attention(heads: int, groups: int, block_size: int) -> BlockAttention:
    """That of all layers of this process with these sizes, so that they share compiled functions."""
    return BlockAttention(CPUBlocks(groups, block_size), heads, compiles=os.environ.get(COMPILE, "1") != "0")


@lru_cache
def reads_layout(groups: int, block_size: int, dim: int, dtype: torch.dtype, isa: str) -> bool:
    """Whether vLLM's kernel writes keys and values where `CPUBlocks` reads them, on this processor and type."""
    cache = torch.zeros(2, groups, block_size, 2 * dim, dtype=dtype)
    key, value = (torch.randn(2 * block_size, groups, dim, dtype=dtype) for _ in range(2))
    halves = cache.view(2, groups, 2 * block_size, dim).chunk(2, dim=2)
    slots = torch.arange(2 * block_size).roll(block_size)
    ops.cpu_attn_reshape_and_cache(key, value, *halves, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")
    layout = CPUBlocks(groups, block_size)
    found = layout.read(cache, layout.places(torch.tensor([[1, 0]]), 2 * block_size))
    return all(torch.equal(part[0].transpose(0, 1), given) for part, given in zip(found, (key, value)))
