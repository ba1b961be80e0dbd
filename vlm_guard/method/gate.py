"""Gates: a method acts only at the steps at which the model is unsure, each row for itself.

    pai:gain=0.4,gate=entropy>0.5      where the next token's distribution has more than half a nat of entropy
    vcd:gate=max_p<0.7                 where the most probable token has less than 0.7
    vcd:gate=rival>=0.1                where the second most probable token has at least a tenth of the first's

The last one is that of a contrast that keeps tokens down to this share of the best: where there is no such rival the
best token stays the best, whatever the second branch says, so that greedy answers are those without a gate.

All look at the model's own logits, before any contrast, temperature or logits processor. A contrast of logits is
gated by the distribution that it would change. What acts inside the model must be decided before the token is read,
so it is gated by the distribution that this token was chosen from. Before the first token nothing has been predicted,
which counts as every token being equally probable: the prompt is read with the method.
"""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_guard.untrusted.printed_text import shown

if TYPE_CHECKING:
    from torch import Tensor

_FORM = re.compile(r"\s*(entropy\s*>=?|max_p\s*<=?|rival\s*>=?)\s*(\d+(?:\.\d*)?|\.\d+)\s*")
# Below every positive number of float32, so that the logarithm of a probability of 0 is finite.
_TINY = 1e-45


@dataclass(frozen=True, kw_only=True)
class Gate:
    """When a method acts.

    Attributes:
        measure: "entropy" in nats, "max_p", the probability of the most probable token, or "rival", that of the second
            most probable one as a share of it.
        inclusive: whether the threshold itself counts as open.
        threshold: entropies and shares above it, or probabilities below it, open the gate.
    """

    measure: str
    inclusive: bool
    threshold: float

    @classmethod
    def read(cls, text: str, method: str = "a method") -> "Gate | None":
        """The gate that a text says; None of an empty one.

        Raises:
            ValueError: the text is no gate.
        """
        if not isinstance(text, str):
            raise ValueError(f"{method}: gate must be text such as 'entropy>0.5', given {text!r}")
        if not text.strip():
            return None
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{method}: cannot read the gate {shown(text)}; write for example entropy>0.5 (in nats), max_p<0.7 or "
                "rival>=0.1 (quoted in a shell, which takes < and > for files)"
            )
        measure = match[1].rstrip("<>= \t")
        return cls(measure=measure, inclusive="=" in match[1], threshold=float(match[2]))

    def is_open(self, logits: "Tensor") -> "Tensor":
        """[B] bool, whether it is open at each row's distribution, from logits [B, V] of any float type."""
        if self.measure == "rival":
            best, second = logits.float().topk(2).values.unbind(-1)
            # As contrasts cut what is implausible, so that both agree to the last digit.
            least = best + (math.log(self.threshold) if self.threshold else -math.inf)
            return second >= least if self.inclusive else second > least
        probabilities = logits.float().softmax(-1)
        if self.measure == "max_p":
            found = probabilities.amax(-1)
            return found <= self.threshold if self.inclusive else found < self.threshold
        found = -(probabilities * probabilities.clamp_min(_TINY).log()).sum(-1)
        return found >= self.threshold if self.inclusive else found > self.threshold

    def ever_opens(self, vocabulary: int) -> bool:
        """Whether it is open where all of `vocabulary` tokens are equally probable, which is as unsure as can be."""
        if self.measure == "max_p":
            return self.threshold > 1 / vocabulary or (self.inclusive and self.threshold == 1 / vocabulary)
        most = 1.0 if self.measure == "rival" else math.log(vocabulary)
        return self.threshold < most or (self.inclusive and self.threshold == most)
