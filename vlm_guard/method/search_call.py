"""What a method sees that writes the whole answer by a search of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from torch import Tensor


class CandidatePasses(Protocol):
    """Passes over one prompt and several beams, in which next tokens are tried before one of them is taken.

    N beams, C candidates behind each of them, V vocabulary, t tokens of the answer so far.
    """

    def candidates(self, tokens: Tensor) -> Tensor:
        """[N, C, V] float32 logits behind the candidates [N, C], each behind its beam and seeing no other one."""
        ...

    def keep(self, beams: Tensor, picks: Tensor) -> None:
        """Go on with candidate `picks` [N] behind beam `beams` [N] of the last `candidates`."""
        ...

    def rewrite(self, tokens: Tensor) -> Tensor:
        """[N, V] float32 logits behind the answer `tokens` [N, t], read anew behind the prompt."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchCall:
    """A `generate` call for one prompt.

    Attributes:
        input_ids: [1, P] the prompt.
        visual: [P] bool, its visual tokens.
        logits: [1, V] float32 behind the prompt.
        passes: the passes behind it.
        process: logits processors of `generate`: from [N, P + t] ids and [N, V] logits to [N, V] logits.
        stops: stopping criteria of `generate`: from [N, P + t] ids to [N] bool.
        length_penalty: the exponent of the length by which a finished beam's score is divided.
        early_stopping: whether to stop when there are as many finished beams as beams; else when none can be better.
        found: what the method keeps of this call, `guard.findings(name)`.
    """

    input_ids: Tensor
    visual: Tensor
    logits: Tensor
    passes: CandidatePasses
    process: Callable[[Tensor, Tensor], Tensor]
    stops: Callable[[Tensor], Tensor]
    length_penalty: float
    early_stopping: Any
    found: SimpleNamespace
