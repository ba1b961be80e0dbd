"""ACT: attention calibration (Unveiling and Harnessing Hidden Attention Sinks, ICML 2024, arXiv 2406.15765).

Keys other than the first that draw much attention from everyone are sinks that hurt. In chosen heads, each sink keeps
a share beta of what it draws, and the rest of the row takes what was freed in proportion. Per layer and head:

    c_j  = mean of A_ij over the rows i >= j that can see key j      (prompt rows, `sink_rows`)
    S    = {j : c_j > threshold} without its first member, which is kept
    A'_ij = beta A_ij  (j in S),    A'_ij = A_ij (1 + (1 - beta) M_i / (1 - M_i))  (other j),   M_i = sum over S of A_ij

Station: attention weights of prompt rows (`prompt_rows`) and of every generated token. Sinks are found when the
prompt is read and kept for the answer. The released code computes c_j anew from whatever rows it is given: in a
decode step that is a single row, the sinks then stay in the ratios, A_00 is forced to 1 and the row sums to about 2.
Here decode rows use the prompt's sinks and sum to 1.

Where the values come from: move_fraction is 1 - beta. beta = 0.4, threshold = 0.1 and layers 2 to 30 of 32 are the
released code's (0.15 and 2 to 31 in its chat script). The paper searches the heads on labelled data (one head
calibrated at a time, kept when accuracy rises: inferred, the rule is not in the code) and ships lists for text models;
none exists for a vision-language model, so `heads` is empty, which calibrates every head. The code averages over all
rows of the prompt and edits all of them (`sink_rows="all"`, `prompt_rows="all"`); with an image that more than doubles
the cost of reading it, so the default here is the text rows after the image, as VAR has it, and
`variant="published"` is the code's. That, and `sinks="visual"`, which keeps textual sinks, are this project's
adaptations. A prompt read in chunks is refused: its
first rows would be edited before its sinks are known.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import TEXT, TEXT_SINK, AttentionEdit, Segments
from vlm_guard.kernels.policies import MoveSinksToRest
from vlm_guard.method import (
    AttentionCall,
    GuardTarget,
    Method,
    RowScope,
    option,
    own_heads,
    register,
    select_heads_of,
    variant_option,
)
from vlm_guard.methods.shared.received_attention import received_attention


@register("act")
@dataclass(frozen=True, kw_only=True)
class ACT(Method):
    """Take attention from keys that draw it from everyone, and give it to the rest of the row."""

    title = "ACT"
    paper = (
        "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through "
        "Attention Calibration, ICML 2024, arXiv 2406.15765"
    )
    stations = ("attention",)
    steady = True
    compiles = True

    move_fraction: float = option(
        0.6,
        help="share of every sink's attention that is given to the rest of the row",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="1 - beta; beta = 0.4 in the released code",
    )
    threshold: float = option(
        0.1,
        help="a key is a sink when the rows that see it give it more than this on average",
        range=(0.0, 1.0),
        paper="0.1 in the released code (0.15 in its chat script); alpha / n with alpha 3 to 7 in the paper",
    )
    sinks: str = option(
        "all",
        help="which keys may be sinks: all, or visual ones only",
        choices=("all", "visual"),
        paper="all; visual is this project's adaptation",
    )
    prompt_rows: RowScope = option(
        "text",
        help="prompt rows to edit: all, text rows after the image, or the last one (answer)",
        choices=("all", "text", "answer"),
        paper="all in the released code, for text models",
        published="all",
    )
    sink_rows: RowScope = option(
        "text",
        help="prompt rows whose attention tells the sinks: all, or the text rows after the image",
        choices=("all", "text"),
        paper="all in the released code, for text models",
        published="all",
    )
    heads: str = option(
        "",
        help="heads to edit, as 'layer:head' or 'layer:first-last' items; empty edits every head",
        paper="found by a search on labelled data in the paper; lists exist for text models only",
    )
    layers: str = option("2-97%", help="decoder layers to edit", paper="2 to 30 of 32 in the released code")
    variant: str = variant_option(
        "published counts and edits every row of the prompt; default the text after the image"
    )

    @property
    def rows(self) -> RowScope:
        """The rows to edit, as asked for."""
        return self.prompt_rows

    @property
    def whole_prompt(self) -> RowScope:
        """The rows whose attention tells the sinks."""
        return self.sink_rows

    def prepare(self, target: GuardTarget) -> dict[int, Tensor] | None:
        """The chosen heads by layer, or None for all of them.

        Raises:
            ValueError: `heads` names heads that the model does not have.
        """
        return select_heads_of(self.heads, target)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers of `layers` that have a chosen head."""
        layers, chosen = super().active_layers(target), self.prepare(target)
        return layers if chosen is None else tuple(layer for layer in layers if layer in chosen)

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The redistribution from this layer's sinks; sinks of the prompt serve all later tokens."""
        if self.move_fraction == 0:
            return None
        if not call.is_decode:
            self._find_sinks(call)
        edit: AttentionEdit = call.memory.edit
        return edit

    def _find_sinks(self, call: AttentionCall) -> None:
        """Count the prompt rows of this call once, and mark the sinks of every head."""
        state, memory = call.state, call.memory
        end, length = state.offset + call.query.shape[2], state.prompt_length
        counted = getattr(memory, "counted", 0)
        if length is not None and end < length:
            raise ValueError("act needs the whole prompt in one pass; do not set prefill_chunk_size with it")
        if counted >= (end if length is None else length):
            return
        every = call.select(self.sink_rows)
        rows = None if every is None else every.rows
        if every is None or rows is None:
            raise ValueError(f"act finds its sinks in {self.sink_rows} rows of the prompt, and this prompt has none")
        position = rows.index + state.offset
        fresh = rows.valid & (position >= counted) & (position < (length or end))
        received = call.over_all_keys(received_attention(every, fresh))[..., :end]
        seen = torch.zeros(received.shape[0], end, dtype=torch.int64, device=position.device)
        seen.scatter_add_(1, position, fresh.long())
        # Row i sees key j where i >= j: the rows from j on, counted from the end.
        seen = seen.flip(-1).cumsum(-1).flip(-1)
        if counted:
            received[..., :counted] += memory.received
            seen[:, :counted] += memory.seen
        memory.received, memory.seen, memory.counted = received, seen, length or end
        mean = received / seen[:, None].clamp_min(1).to(received.device)
        memory.edit = self._edit(call, sink_mask(mean, self.threshold))

    def _edit(self, call: AttentionCall, sinks: Tensor) -> AttentionEdit:
        if self.sinks == "visual":
            sinks = sinks & call.state.visual[:, None, : sinks.shape[-1]].to(sinks.device)
        ids = torch.where(sinks, TEXT_SINK, TEXT).to(torch.uint8)
        heads = None
        if call.prepared is not None:
            heads = own_heads(call.prepared[call.layer], 0, ids.shape[1], call.guard.target).to(ids.device)
        policy = MoveSinksToRest(move_fraction=self.move_fraction, heads=heads)
        return AttentionEdit(segments=Segments(ids), policy=policy)


def sink_mask(mean: Tensor, threshold: float) -> Tensor:
    """[B, H, K] bool: keys whose mean received attention `mean` [B, H, K] exceeds the threshold, without the first."""
    above = mean > threshold
    return above & (above.cumsum(-1) > 1)
