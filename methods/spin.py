"""SPIN: suppressing heads that do not look at the picture (EMNLP 2025, arXiv 2505.16411).

A few attention heads of a layer hardly look at the picture when a token is generated, and are said to write what the
picture does not show. SPIN turns their output down, token by token, and leaves attention itself alone.

Station: attention outputs, in the row of every generated token (the last prompt row and each decode row), `layers`.
With s the scores of that row before the softmax, V the visual keys and H query heads,

  relevance   r_h = sum over j in V of s_hj
  output      o'_h = o_h for the floor(keep * H) heads of largest r_h,   o'_h = factor * o_h for all others

Where the values come from: the released code's for LLaVA-1.5, keep 0.95 and factor 0.08 in all layers for captions
(0.8 and 0.1 for POPE; the README says 0.05 for the factor). The code divides r by its standard deviation and takes a
softmax before it chooses, which changes no order.

Because a score is linear in its key, r_h is one product of the query with the sum of the visual keys, which is made
once for the prompt: a step costs H short products and no softmax is computed anew. Where scores are capped or biased,
or the layer sees a window, the scores themselves are summed, over the visual keys that are in sight. Steps are not
compiled, since what is scaled depends on the query of the step. Rows without a picture are left alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import AttentionCall, GenerationState, Method, all_heads, option, own_heads, register


@register("spin")
@dataclass(frozen=True, kw_only=True)
class SPIN(Method):
    """Turn down the heads that look at the picture least, for every token anew."""

    title = "SPIN"
    paper = (
        "Mitigating Hallucinations in Vision-Language Models through Image-Guided Head Suppression, EMNLP 2025, "
        "arXiv 2505.16411"
    )
    stations = ("attention",)
    rows = "answer"

    factor: float = option(
        0.08,
        help="factor of the output of suppressed heads; 1 changes nothing",
        range=(0.0, 1.0),
        neutral=1.0,
        paper="0.08 for captions, 0.1 for POPE in the code, 0.05 in its README",
    )
    keep: float = option(
        0.95,
        help="share of a layer's heads that are kept, those that look at the picture most",
        range=(0.0, 1.0),
        neutral=1.0,
        tried=(0.8,),
        paper="0.95 for captions, 0.8 for POPE in the code",
    )
    layers: str = option("all", help="decoder layers whose heads are suppressed", paper="0 to 31 of 32 for LLaVA-1.5")

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The factors [B, H, R] of this call's rows."""
        if self.factor == 1 or self.keep == 1:
            return None
        relevance = all_heads(self._relevance(call), 1, call.target)
        # 0.7 * 10 is a little less than 7 in binary.
        count = math.floor(self.keep * relevance.shape[1] + 1e-9)
        kept = relevance.topk(count, dim=1).indices
        scale = torch.full_like(relevance, self.factor).scatter(1, kept, 1.0)
        scale = own_heads(scale, 1, call.query.shape[1], call.target)
        return AttentionEdit(head_scale=torch.where(call.memory.has_image, scale, 1.0))

    def join_memory(self, kept: Sequence[SimpleNamespace], state: GenerationState) -> SimpleNamespace:
        """The sums of all; none where any has none."""
        sums = [memory.keys for memory in kept]
        return SimpleNamespace(
            summed=state.visual,
            keys=None if any(keys is None for keys in sums) else torch.cat(sums),
            has_image=torch.cat([memory.has_image for memory in kept]),
        )

    def _relevance(self, call: AttentionCall) -> Tensor:
        """[B, H, R] float32 sums of the scores of visual keys."""
        memory, visual = call.memory, call.state.visual
        # Another tensor whenever more of the prompt was read, and the same all answer long.
        if getattr(memory, "summed", None) is not visual:
            memory.summed, memory.keys = visual, None
            memory.has_image = visual.to(call.query.device).any(-1)[:, None, None]
            problem = call.problem(AttentionEdit())
            if problem.softcap is None and problem.position_bias is None and not call.has_window:
                memory.keys = _sum_of_keys(call.key, call.visual_keys()) * problem.scaling
        if memory.keys is None:
            scores = call.scores()
            unseen = ~call.visual_keys()[:, None, None] | (scores == float("-inf"))
            return scores.masked_fill(unseen, 0).sum(-1)
        query = call.query if call.rows is None else call.rows.take(call.query)
        batch, heads, rows, head_dim = query.shape
        grouped = query.reshape(batch, memory.keys.shape[1], -1, head_dim).to(memory.keys.dtype)
        return (grouped @ memory.keys).view(batch, heads, rows)


def _sum_of_keys(key: Tensor, visual: Tensor) -> Tensor:
    """[B, G, D, 1] sum of the visual keys, at least float32; `key` is [B, G, K, D], `visual` [B, K] bool."""
    wide = torch.promote_types(key.dtype, torch.float32)
    summed = visual[:, None, None].to(wide) @ key.to(wide)
    return summed.transpose(-1, -2)
