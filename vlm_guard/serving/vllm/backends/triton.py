"""vLLM's Triton backend, for GPUs, with the guarded rows of every step computed anew."""

from functools import cache
from typing import Any, ClassVar

from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadata,
    TritonAttentionMetadataBuilder,
)

from vlm_guard.serving.vllm.attention.block_layout import DecodeAttention
from vlm_guard.serving.vllm.backends.guarded_layers import GuardedForward, GuardedSteps
from vlm_guard.serving.vllm.backends.head_blocks import HeadBlocks, KernelAttention


class GuardedTritonBuilder(TritonAttentionMetadataBuilder):
    """Plans, once a step, which rows are guarded."""

    # What is kept in Python about a step must not be frozen into a captured graph: attention runs between graphs.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps = GuardedSteps(self.vllm_config, HeadBlocks(self.block_size), self.block_size)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> TritonAttentionMetadata:
        """VLLM's description of a step, with the plan of what is guarded in it."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        self._steps.plan(metadata, common_attn_metadata)
        return metadata


class GuardedTritonAttention(GuardedForward, TritonAttentionImpl):
    """One attention layer."""

    def attention_over(self, block_size: int) -> DecodeAttention:
        """That of all layers with these sizes."""
        return kernel_attention(block_size)

    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        """Never: what is edited has to be there as it is."""
        return False


class GuardedTritonBackend(TritonAttentionBackend):
    """The backend that `plugin.register` puts in the place of vLLM's."""

    @staticmethod
    def get_impl_cls() -> type[TritonAttentionImpl]:
        """The attention layer."""
        return GuardedTritonAttention

    @staticmethod
    def get_builder_cls() -> type[TritonAttentionMetadataBuilder]:
        """The planner of steps."""
        return GuardedTritonBuilder


@cache
def kernel_attention(block_size: int) -> KernelAttention:
    """That of all layers with blocks of this size."""
    return KernelAttention(HeadBlocks(block_size))
