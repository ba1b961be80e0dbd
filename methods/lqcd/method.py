"""LQCD: leading query contrastive decoding (Towards Analyzing and Mitigating Sycophancy in LVLMs, arXiv 2408.11261).

A question that suggests its answer ("I think the answer is yes") pulls the model along. LQCD answers the neutral form
of the question and moves away from what the leading form adds.

Station: logits, with x_n the neutral and x_l the leading query on the same picture v:

  p(y) = softmax[(1 + strength) logit(y | x_n, v) - strength logit(y | x_l, v)]

on tokens plausible under the neutral query. The prompt given to `generate` is the leading one; the branch is the
positive one, with the text passed through a neutraliser, a plain function from text to text. Only a row that the
neutraliser changes is contrasted: a neutral question is answered as without LQCD.

The paper has a language model rewrite the query; its prompt, the strengths and the leading templates were not to be
found, nor the formula of the later version's sentiment scaler, which is therefore left out. Defaults (strength 1,
plausibility 0.1) are those of contrast decoding at large. The default neutraliser works by rules: see
`vlm_guard.methods.lqcd.neutral_question`.
Give a function of your own, or its import path ("package.module:function"), as `neutraliser`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_guard.method import (
    Branch,
    ContrastCall,
    ContrastMethod,
    GuardTarget,
    describe_function,
    find_function,
    option,
    plausibility_option,
    register,
)
from vlm_guard.methods.lqcd.neutral_question import neutralise

RULES = "rules"


@register("lqcd")
@dataclass(frozen=True, kw_only=True)
class LQCD(ContrastMethod):
    """Answer the neutral form of a leading question, away from what the leading form suggests."""

    title = "LQCD"
    paper = "Towards Analyzing and Mitigating Sycophancy in Large Vision-Language Models, arXiv 2408.11261"
    needs = ("processor", "second branch")

    strength: float = option(
        1.0,
        help="how far to move away from the leading query's logits",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha, value not found; 1 as in VCD",
    )
    plausibility: float = plausibility_option("beta, value not found; 0.1 as in VCD")
    neutraliser: str | Callable[[str], str] = option(
        RULES,
        help="'rules', the import path of a function from text to text, or such a function",
        paper="a language model in the paper",
    )

    def prepare(self, target: GuardTarget) -> Callable[[str], str]:
        """The neutraliser as a function.

        Raises:
            ValueError: the import path does not lead to a function.
        """
        return find_function("lqcd", "neutraliser", self.neutraliser, {RULES: neutralise})

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The neutral query, as the positive branch."""
        prompt = call.prompt.with_rewritten_text(call.tokenizer, call.prepared)
        return Branch(prompt=prompt, images="same", sign="positive", active=prompt.changed)

    def describe(self) -> dict[str, Any]:
        """Name and options; a function is described by its import path."""
        description = super().describe()
        description["options"]["neutraliser"] = describe_function(self.neutraliser)
        return description
