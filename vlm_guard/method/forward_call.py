"""What a method sees of a `generate` call and of a forward pass before they run."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vlm_guard.guard import Guard
    from vlm_guard.method.state import GenerationState


@dataclass(frozen=True, kw_only=True, eq=False)
class InputsCall:
    """A `generate` call, for `Method.edit_inputs`.

    Attributes:
        guard: the guard, whose model runs as it was inside `guard.suspended()`.
        inputs: the keyword arguments of `generate`; prompt ids given by position are under "input_ids".
        images: the pictures given beside them (`images=`), or None.
        findings: what the method keeps for this call, `guard.findings(name)`.
        prepared: what `Method.prepare` returned.
        paired_attention: where two greedy answers of the bare model look. Called with the given prompt, a pair of
            prompts made from it, inputs of `generate`, layers and the number of steps; returns for each of the pair,
            for each row [T, layers, P] float32 attention of the rows that predict its T tokens, mean over heads.
    """

    guard: "Guard"
    inputs: dict[str, Any]
    images: Any
    findings: SimpleNamespace
    prepared: Any
    paired_attention: "Callable[..., tuple[list[Tensor], list[Tensor]]]"


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardCall:
    """A forward pass that reads a prompt, for `Method.begin_forward`.

    Attributes:
        guard: the guard.
        inputs: the keyword arguments of the forward pass, to be changed in place.
        state: the generation, which has taken in the tokens of this pass.
        prepared: what `Method.prepare` returned.
    """

    guard: "Guard"
    inputs: dict[str, Any]
    state: "GenerationState"
    prepared: Any
