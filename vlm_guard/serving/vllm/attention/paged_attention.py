"""Edits of attention over a paged cache: how the guarded rows of a step are computed anew, layer by layer.

vLLM's own backend has computed every row and written every key and value. What is guarded is then overwritten: rows of
prompts request by request, with the same code as in transformers, and decoded rows together, all requests of one offer
in one stacked edit.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.kernels.stacked_edits import stack_edits
from vlm_guard.method.state import GenerationState
from vlm_guard.runtime.attention import attend, edit_of_later_steps
from vlm_guard.runtime.attention_context import AttentionInput
from vlm_guard.serving.vllm.attention.block_attention import BlockCall, BlockEdit
from vlm_guard.serving.vllm.attention.block_layout import DecodeAttention
from vlm_guard.serving.vllm.attention.joint_rows import BlockKeys, joint_edit
from vlm_guard.serving.vllm.attention.step_plan import DecodeGroup, RowRange, StepPlan
from vlm_guard.serving.vllm.rows import GuardedRequest
from vlm_guard.serving.vllm.served_guards import EditedLayer


@dataclass(eq=False, slots=True)
class FinishedInput(AttentionInput):
    """An attention call whose unedited output is known already.

    Attributes:
        finished: [B, Q, H, Dv].
    """

    finished: Tensor

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """The output that vLLM's own backend computed."""
        return self.finished, None


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """One attention layer of a step, its own work done.

    Attributes:
        index: number of the decoder layer.
        query: [T, H, D], key: [T, G, D], value: [T, G, D] of the rows of the step.
        output: [T, H, D], what vLLM's backend computed; edited rows are overwritten.
        cache: the layer's keys and values, as the backend keeps them.
        attention: attends over its blocks.
        scaling: factor of q.k. softcap: of the scores, or None. sinks: [H] sink logits, or None.
    """

    index: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    cache: Tensor
    attention: DecodeAttention
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def replaces(self, plan: StepPlan, rows: int) -> bool:
        """Whether all of the step's `rows` get new weights here, so that nobody has to compute their output before."""
        if plan.ranges or sum(len(group.requests) for group in plan.groups) < rows:
            return False
        edits = [self._edit_of(group) for group in plan.groups]
        return all(edit is not None and edit.changes_weights for edit in edits)

    def edit(self, plan: StepPlan) -> None:
        """Overwrite the rows that are edited in this layer."""
        for group in plan.groups:
            self._edit_group(group)
        for found in plan.ranges:
            layer = found.served.layers[found.request.side].get(self.index)
            if layer is not None:
                self._edit_range(found, layer)

    def _edit_group(self, group: DecodeGroup) -> None:
        found = self._edit_of(group)
        if found is None:
            return
        edit, rows = found.edit, group.rows
        if not edit.changes_weights and edit.self_mix is None and edit.head_factors is not None:
            self.output[rows] *= edit.head_factors[:, :, 0].to(self.output.dtype)
            return
        own_value = None if edit.self_mix is None else self.value[rows]
        self.output[rows] = self.attention.attend(self._block_call(group, own_value), found)

    def _block_call(self, group: DecodeGroup, own_value: Tensor | None = None) -> BlockCall:
        rows = group.rows
        return BlockCall(
            query=self.query[rows].clone() if isinstance(rows, slice) else self.query[rows],
            own_value=own_value,
            cache=self.cache,
            places=group.places,
            mask=group.mask,
            scaling=self.scaling,
            softcap=self.softcap,
            sinks=self.sinks,
        )

    def _edit_of(self, group: DecodeGroup) -> BlockEdit | None:
        """The edit of a group's rows in this layer and step."""
        layer = group.served.layers[group.side].get(self.index)
        if layer is None:
            return None
        if group.joint is None or not layer.joint:
            return self._steady_edit(group, layer)
        if self.index not in group.edits:
            with layer.slot.guard.reading.running(group.joint, group.joint.findings):
                edit = joint_edit(layer, group.joint, BlockKeys(self._block_call(group), self.attention))
            steady = self._steady_edit(group, layer) if layer.steady.processors else None
            if steady is not None:
                edit = steady.given if edit is None else steady.given.merge(edit)
            group.edits[self.index] = None if edit is None else BlockEdit.of(edit, group.keys)
        return group.edits[self.index]

    def _steady_edit(self, group: DecodeGroup, layer: EditedLayer) -> BlockEdit | None:
        """That of the methods whose edits stay; made once for as long as no more keys have to be read at once."""
        known = group.steady.get(self.index)
        if known is not None and known.keys != group.keys:
            known = group.steady[self.index] = BlockEdit.of(known.given, group.keys)
        if known is None and self.index not in group.steady:
            edits = [self._later_edit(request, state, layer) for request, state in zip(group.requests, group.states)]
            stacked = stack_edits(edits, self.query.shape[1])
            known = group.steady[self.index] = None if stacked is None else BlockEdit.of(stacked, group.keys)
        return known

    def _later_edit(self, request: GuardedRequest, state: GenerationState, layer: EditedLayer) -> AttentionEdit | None:
        """The edit of a request's decode steps that stays the same, made once for each layer."""
        if self.index not in request.edits:
            groups, dim, heads = self.key.shape[1], self.key.shape[2], self.query.shape[1]
            key = self.key.new_zeros(()).expand(1, groups, state.length, dim)
            with layer.slot.guard.reading.running(state, state.findings):
                edit = edit_of_later_steps(layer.steady, state, layer.module, key, key, heads)
            request.edits[self.index] = edit
        return request.edits[self.index]

    def _edit_range(self, found: RowRange, layer: EditedLayer) -> None:
        rows, layout = found.rows, self.attention.layout
        if found.begins:
            key, value = (part[rows].transpose(0, 1)[None] for part in (self.key, self.value))
        else:
            key, value = (
                part[:, :, : found.length]
                for part in layout.read(self.cache, layout.places(found.blocks[None], found.length))
            )
        kwargs: dict[str, Any] = {"scaling": self.scaling}
        if self.softcap is not None:
            kwargs["softcap"] = self.softcap
        if self.sinks is not None:
            kwargs["s_aux"] = self.sinks
        query = self.query[rows].transpose(0, 1)[None]
        vars(layer.module)["num_key_value_groups"] = query.shape[1] // key.shape[1]
        given = FinishedInput(
            "sdpa", layer.module, query, key, value, found.mask, kwargs, self.output[None, rows].clone()
        )
        streams = found.request.streams
        if found.text is not None and streams is not None:
            streams.meet(self.output[None, found.text.stop - 1])
        with layer.slot.guard.reading.running(found.state, found.state.findings):
            edited, _ = attend(layer.slot, found.state, given)
        self.output[rows] = edited[0]
        scale = streams.scale(self.index) if found.text is not None and streams is not None else None
        if scale is not None:
            self.output[found.text] *= scale[:, :, None].to(self.output.dtype)
