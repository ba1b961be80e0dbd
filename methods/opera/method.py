"""OPERA: over-trust penalty and retrospection-allocation (CVPR 2024, arXiv 2311.17911).

Made-up continuations tend to follow tokens that all later ones attend to: the answer goes on from a summary of itself
instead of from the picture. OPERA is a beam search that penalises candidate tokens whose attention makes such a column
of one earlier token strong, and goes back to that token when the same one stays strongest.

Stations: attention (it looks at the last layer, and edits nothing) and logits (a search of its own). At every step, for
each of the `candidates` most probable tokens y of each beam, with a the weights of y's row in the last layer, largest
over heads and normalised to sum 1, and tokens of the answer numbered from 0,

  column    phi_j = product over the rows i >= j of (scale * a_ij), j a token of the answer
  penalty   1e-7 * max over j of phi_j;   in the first 10 tokens minus the share of a on visual tokens
  logits    l'_y = l_y - strength * penalty,   all tokens that are no candidates ruled out

and then a beam search's step: log-softmax, sums, the best continuations of all beams. If for every beam the token s of
the strongest column (the most frequent one over candidates, then over beams) has been strongest more than `threshold`
times and s >= 10, the beams return to the answer up to s and choose a token behind it that was not chosen there before,
without penalty. A place is returned to at most `candidates` times, then the one before it.

Where the values come from: 5 beams, 5 candidates, scale 50, threshold 15, strength 1 and a window of 512 are the
released code's command line; `variant=fast` is its README's (1 candidate, threshold 25). All beams begin as one, and
with one candidate behind each nothing ever parts them, so `fast` is greedy decoding that can go back.

The release runs each candidate through the model by itself, beside the step: 1 + C passes a token. Here all candidates
of all beams are tokens of one pass over one cache (`vlm_guard/contrast/candidate_passes.py`), which also gives the next
step's logits: one pass a token. Products are sums of logarithms, where the release's half precision overflows. A
return reads the kept answer again, a few tokens, not the prompt. Logits processors act before candidates are chosen.
Tokens that were chosen at a place before it was returned to count for all beams; the history of strongest columns moves
with its beam.

The prompts of a batch are read together and answered one after the other, each with beams of its own, in decoders whose
layers all see every earlier token; others are refused. Steps are not compiled. A prompt without a picture gets the
model's own greedy answer.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import AttentionCall, GuardTarget, Method, SearchCall, all_heads, option, register
from vlm_guard.methods.opera.beam_search import OverTrustSearch


@register("opera")
@dataclass(frozen=True, kw_only=True)
class OPERA(Method):
    """A beam search that penalises tokens which lean on one earlier token, and goes back to it."""

    title = "OPERA"
    paper = (
        "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust Penalty and "
        "Retrospection-Allocation, CVPR 2024, arXiv 2311.17911"
    )
    stations = ("attention", "logits")
    rows = "answer"
    FAST: ClassVar[dict[str, int]] = {"candidates": 1, "threshold": 25}

    strength: float = option(
        1.0,
        help="how much the penalty counts; 0 switches OPERA off, beams and all",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="penalty_weights = 1 in the code",
    )
    beams: int = option(5, help="beams of the search", range=(1, 32), paper="5 in the code")
    candidates: int = option(
        5, help="tokens tried behind each beam", range=(1, 1000), paper="num_attn_candidates = 5; 1 in the fast variant"
    )
    scale: float = option(
        50.0, help="factor of attention weights", range=(1.0, 1000.0), paper="scale_factor = 50 in the code"
    )
    threshold: int = option(
        15,
        help="a column must have been strongest more often than this before the beams go back to it",
        range=(1, 10_000),
        paper="15; 25 in the fast variant",
    )
    window: int = option(
        512, help="how many tokens the beams go back at most", range=(1, 100_000), paper="window_size = 512"
    )
    variant: str = option(
        "default",
        help="fast tries one candidate a beam and goes back less easily, as the README's efficient setting",
        choices=("default", "fast"),
        paper="the README names both",
    )

    def __post_init__(self) -> None:
        if self.variant == "fast":
            self.take_values({name: (value, "variant fast") for name, value in self.FAST.items()})
        super().__post_init__()

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The last layer with attention."""
        return (target.architecture.layers[-1].index,)

    def contrasts(self) -> bool:
        """Strength 0 switches it off."""
        return self.strength > 0

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """No edit: the largest weight of any head in the rows of the answer is kept."""
        if self.strength > 0:
            largest = call.weights().amax(1, keepdim=True)
            call.found.rows = all_heads(largest, 1, call.target).amax(1)
        return None

    def search(self, call: SearchCall) -> tuple[Tensor, Tensor]:
        """The answer of the best beam."""
        return OverTrustSearch(self, call).run()
