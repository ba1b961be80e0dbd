"""What a method sees of the read-out of a token: the states that the model's output embeddings make logits of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from torch import Tensor, nn

from vlm_guard.families.architecture import Architecture
from vlm_guard.method.state import GenerationState


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadOutCall:
    """What `Method.read_out` and `Method.combine_read_out` see of one predicted token of B rows.

    Attributes:
        method: name of the method.
        final: [B, D] what the model itself hands to its output embeddings.
        entering: by layer of `Method.early_layers`, [B, D] the state that enters it there.
        position: of the token whose state this is, from the end of the pass: -1 is the last.
        state: the generation; None for a model without a guard.
        architecture: of the model.
        head: its output embeddings.
        finish: what the model does to logits [..., V] behind them.
        find_norm: finds the decoder's norm in front of them, or raises ValueError.
    """

    method: str
    final: Tensor
    entering: Mapping[int, Tensor]
    position: int
    state: GenerationState | None
    architecture: Architecture
    head: nn.Module = field(repr=False)
    finish: Callable[[Tensor], Tensor] = field(repr=False)
    find_norm: Callable[[], nn.Module] = field(repr=False)

    @property
    def norm(self) -> nn.Module:
        """The decoder's norm in front of the output embeddings.

        Raises:
            ValueError: there is none by a known name.
        """
        return self.find_norm()

    @property
    def memory(self) -> SimpleNamespace:
        """What the method keeps for all layers of this generation.

        Raises:
            ValueError: the model has no guard.
        """
        if self.state is None:
            raise ValueError(f"{self.method} looks inside the model, which needs a guard: wrap(model, ...)")
        return self.state.memory(self.method, -1)

    @property
    def has_image(self) -> Tensor:
        """[B] bool, the rows whose prompt has a visual token."""
        if self.state is None:
            raise ValueError(f"{self.method} looks at visual tokens, which needs a guard: wrap(model, ...)")
        return self.state.visual.any(-1).to(self.final.device)

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The logits of a few tokens, read out of any states.

        Args:
            hidden: [B, P, D], normalised or not, as wanted.
            tokens: [B, K] long.

        Returns:
            [B, P, K] float32.

        Raises:
            ValueError: the output embeddings are no plain matrix (quantised or offloaded ones are not).
        """
        head = require_plain_head(self.head, self.method)
        rows = head.weight[tokens.to(head.weight.device)]
        found = hidden.to(rows.device, rows.dtype) @ rows.transpose(-1, -2)
        if head.bias is not None:
            found = found + head.bias[tokens.to(rows.device)][:, None]
        return self.finish(found.float())


def require_plain_head(head: nn.Module, method: str) -> nn.Linear:
    """The output embeddings, if their rows can be taken one by one.

    Args:
        head: the model's output embeddings.
        method: name of the method that takes them.

    Raises:
        ValueError: they are quantised, offloaded, or spread over processes.
    """
    matrix = head.weight if isinstance(head, nn.Linear) and type(head) is nn.Linear else None
    if isinstance(head, nn.Linear) and matrix is not None and not matrix.is_meta and type(matrix.data) is Tensor:
        return head
    raise ValueError(
        f"{method} reads single tokens out of the output embeddings, which are no plain matrix in this model "
        f"({type(head).__name__}); load it without quantising or offloading them, and without tp_plan"
    )
