"""vLLM's attention backend for the CPU, with the guarded rows of every step computed anew."""

import os
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.config import get_current_vllm_config, set_current_vllm_config
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from vlm_guard.serving.vllm.block_attention import BlockAttention
from vlm_guard.serving.vllm.cpu_blocks import CPUBlocks
from vlm_guard.serving.vllm.paged_attention import PLAN, LayerCall, StepPlan, StepPlanner, StepRows
from vlm_guard.serving.vllm.process import ProcessGuards
from vlm_guard.serving.vllm.rows import table_of

COMPILE = "VLM_GUARD_COMPILE"
"""The environment variable that is 0 where decoded rows are not to be compiled."""


class GuardedCPUBuilder(CPUAttentionMetadataBuilder):
    """Plans, once a step, which rows are guarded."""

    # What is kept in Python about a step must not be frozen into a captured graph.
    isa: str
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with set_current_vllm_config(self.vllm_config):
            guards = ProcessGuards.of(self.vllm_config)
        self._table = table_of(self.vllm_config.instance_id)
        self._planner = StepPlanner(guards.served, self._table, CPUBlocks(self.num_kv_heads, self.block_size))
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
        plan = None
        if self._table.requests and not (self.is_cross_attention or self.is_encoder_only_attention):
            self._table.lengths = metadata.seq_lens.tolist()[: common_attn_metadata.num_reqs]
            step = StepRows(
                starts=common_attn_metadata.query_start_loc_cpu.tolist(),
                lengths=self._table.lengths,
                block_table=metadata.block_table,
                block_size=self.block_size,
            )
            plan = self._planner.plan(step)
        vars(metadata)[PLAN] = plan
        return metadata


class GuardedCPUAttention(CPUAttentionBackendImpl):
    """One attention layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._index: int | None = None
        self._attention: BlockAttention | None = None
        if self.attn_type != AttentionType.DECODER:
            return
        unserved = {
            "ALiBi": self.alibi_slopes is not None,
            "a sliding window": self.sliding_window > 0,
            "keys shared with another layer": self.kv_sharing_target_layer_name is not None,
        }
        found = [name for name, there in unserved.items() if there]
        if found:
            model = get_current_vllm_config().model_config.model
            raise ValueError(
                f"guards cannot be served inside vLLM for {model}: its attention has {' and '.join(found)}"
            )

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """VLLM's attention of all rows, then the guarded ones; see `CPUAttentionBackendImpl.forward`."""
        plan: StepPlan | None = None if attn_metadata is None else vars(attn_metadata).get(PLAN)
        call = None
        if plan is not None and attn_metadata is not None and self.attn_type == AttentionType.DECODER:
            if self._index is None or self._attention is None:
                self._index = extract_layer_index(layer.layer_name)
                self._attention = block_attention(self.num_heads, self.num_kv_heads, kv_cache.shape[2])
            call = LayerCall(
                index=self._index,
                query=query.view(-1, self.num_heads, self.head_size),
                key=key.view(-1, self.num_kv_heads, self.head_size),
                value=value.view(-1, self.num_kv_heads, self.head_size),
                output=output.view(-1, self.num_heads, self.head_size),
                cache=kv_cache,
                attention=self._attention,
                scaling=self.scale,
                softcap=self.logits_soft_cap or None,
                sinks=self.sinks,
            )
            if call.replaces(plan, attn_metadata.num_actual_tokens):
                call.edit(plan)
                return output
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if call is not None and plan is not None:
            call.edit(plan)
        return output


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
