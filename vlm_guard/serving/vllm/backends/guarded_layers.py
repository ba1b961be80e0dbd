"""What the guarded backends have in common: the plan of a step, and one layer's part of it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.config import get_current_vllm_config, set_current_vllm_config
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata

from vlm_guard.serving.vllm.attention.block_layout import BlockLayout, DecodeAttention
from vlm_guard.serving.vllm.attention.paged_attention import LayerCall
from vlm_guard.serving.vllm.attention.step_plan import PLAN, StepPlan, StepPlanner, StepRows
from vlm_guard.serving.vllm.grounding.lens_rows import kept_prompts
from vlm_guard.serving.vllm.process import ProcessGuards
from vlm_guard.serving.vllm.rows import table_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class GuardedSteps:
    """Plans, once a step, which rows are guarded.

    Args:
        vllm_config: of the engine.
        layout: of the cache's blocks.
        block_size: keys of a block.
    """

    def __init__(self, vllm_config: "VllmConfig", layout: BlockLayout, block_size: int) -> None:
        with set_current_vllm_config(vllm_config):
            guards = ProcessGuards.of(vllm_config)
        self._table = table_of(vllm_config.instance_id)
        lens = guards.served.lens_planner(kept_prompts(vllm_config.instance_id))
        self._planner = StepPlanner(guards.served, self._table, layout, lens)
        self._block_size = block_size

    def plan(self, metadata: Any, common: CommonAttentionMetadata) -> None:
        """Put the plan of a step into vLLM's description of it.

        Args:
            metadata: the backend's description, with `seq_lens` and `block_table`.
            common: the description that all backends share.
        """
        plan = None
        if common.req_idx is not None:
            self._table.arrange(common.req_idx.tolist())
        if self._table.requests:
            known = common.seq_lens_cpu_upper_bound  # exact without drafts, and read without waiting for the device
            lengths = metadata.seq_lens if known is None else known
            self._table.lengths = lengths.tolist()[: common.num_reqs]
            plan = self._planner.plan(
                StepRows(
                    starts=common.query_start_loc_cpu.tolist(),
                    lengths=self._table.lengths,
                    block_table=metadata.block_table,
                    block_size=self._block_size,
                )
            )
        vars(metadata)[PLAN] = plan


class GuardedLayer:
    """One attention layer of a backend.

    Args:
        layer: vLLM's own, whose sizes are read; nothing else of it is used.
        attention: makes what attends over blocks of so many keys, when they are first seen.

    Raises:
        ValueError: the layer has a part that guards do not reach.
    """

    def __init__(self, layer: Any, attention: Callable[[int], DecodeAttention]) -> None:
        self._layer = layer
        self._make_attention = attention
        self._attention: DecodeAttention | None = None
        self._index = -1
        self.decodes = layer.attn_type == AttentionType.DECODER
        if not self.decodes:
            return
        window = layer.sliding_window
        unserved = {
            "ALiBi": layer.alibi_slopes is not None,
            "a sliding window": max(window) >= 0 if isinstance(window, tuple) else window > 0,
            "keys shared with another layer": layer.kv_sharing_target_layer_name is not None,
        }
        found = [name for name, there in unserved.items() if there]
        if found:
            model = get_current_vllm_config().model_config.model
            raise ValueError(
                f"guards cannot be served inside vLLM for {model}: its attention has {' and '.join(found)}"
            )

    def forward(self, own: Callable[[], None], name: str, metadata: Any, cache: Tensor, rows: Sequence[Tensor]) -> None:
        """Attention of a step.

        Args:
            own: computes vLLM's own attention of all rows into the output.
            name: of the layer in the model.
            metadata: the description of the step; None in a step that only measures memory.
            cache: keys and values of the layer.
            rows: the queries, keys, values and outputs of the step's rows.
        """
        plan: StepPlan | None = None if metadata is None else vars(metadata).get(PLAN)
        if plan is None or not self.decodes:
            own()
            return
        call = self._call(name, cache, rows)
        if not call.replaces(plan, metadata.num_actual_tokens):
            own()
        call.edit(plan)

    def _call(self, name: str, cache: Tensor, rows: Sequence[Tensor]) -> LayerCall:
        layer = self._layer
        if self._attention is None:
            self._index = extract_layer_index(name)
            self._attention = self._make_attention(cache.shape[2])
        query, key, value, output = rows
        return LayerCall(
            index=self._index,
            query=query.view(-1, layer.num_heads, layer.head_size),
            key=key.view(-1, layer.num_kv_heads, layer.head_size),
            value=value.view(-1, layer.num_kv_heads, layer.head_size),
            output=output.view(-1, layer.num_heads, layer.head_size),
            cache=cache,
            attention=self._attention,
            scaling=layer.scale,
            softcap=layer.logits_soft_cap or None,
            sinks=layer.sinks,
        )


class GuardedForward:
    """Goes in front of a backend's own layer class: its attention, then that of the guarded rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guarded = GuardedLayer(self, self.attention_over)

    def attention_over(self, block_size: int) -> DecodeAttention:
        """What attends over blocks of so many keys."""
        raise NotImplementedError

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *scales: Tensor | None,
        **named_scales: Tensor | None,
    ) -> Tensor:
        """VLLM's attention of all rows, then the guarded ones; see `AttentionImpl.forward`."""

        def own() -> None:
            backend: Any = super(GuardedForward, self)
            backend.forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales, **named_scales)

        self._guarded.forward(own, layer.layer_name, attn_metadata, kv_cache, (query, key, value, output))
        return output
