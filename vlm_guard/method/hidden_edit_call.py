"""What a method sees when it may replace hidden states."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from vlm_guard.families.layer_parts import Part
from vlm_guard.method.state import GenerationState
from vlm_guard.method.target import GuardTarget
from vlm_guard.method.visual_tokens import RowSelection


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenEditCall:
    """What `Method.edit_hidden` sees.

    Attributes:
        hidden: [B, R, hidden size] the rows that the method asked for (`Method.hidden_rows`), of `part`.
        part: "attention" or "mlp", what these add to the residual stream, "residual", the stream behind the layer, or
            "entering", the stream in front of it.
        layer: index of the decoder layer.
        rows: where these rows stand in the current pass; None when they are all of it (a decode step).
        state: the generation.
        memory: what the method keeps for this layer. shared: what it keeps for all layers.
        prepared: what `Method.prepare` returned.
        target: the model.
    """

    hidden: Tensor
    part: Part
    layer: int
    rows: RowSelection | None
    state: GenerationState
    memory: SimpleNamespace
    shared: SimpleNamespace
    prepared: Any
    target: GuardTarget
