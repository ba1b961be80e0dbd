"""DoLa: decoding by contrasting layers (ICLR 2024, arXiv 2309.03883).

What a late layer adds to an early one is taken to be knowledge rather than habit. DoLa reads logits out of early
layers, takes the layer that differs most from the last, and subtracts its log-probabilities.

Station: logits; no second branch. At every step, with z_m the model's logits and z_e = output embeddings applied to
the hidden state that enters layer e at the last position,

  layer    e* = argmax over candidates of the divergence of softmax(z_e) from softmax(z_m)
  logits   log softmax(z_m) - log softmax(z_e*),   kept where z_m >= max z_m + ln(plausibility)

The released code applies no final norm to early layers (`final_norm=False`), takes the mean divergence over the batch
and so one layer for all rows, and reverses both Kullback-Leibler terms, KL(M || p) and KL(M || q) with
M = (p + q) / 2. Here each row has its own layer (the release's batches of one are the same), and `divergence` is
"textbook" (Jensen-Shannon, the default, as in the paper's formula) or "reversed" (the release; `variant="published"`):
the order of the two arguments of torch's `kl_div` is an accident of the code, which says Jensen-Shannon itself. The
release also multiplies repeated tokens down by 1.2: pass `repetition_penalty=1.2` to `generate` for that.

Candidates: "even" layers over the whole depth are HALC's setting for vision-language models and the default; "low" and
"high" are the even layers of the lower and upper half, the paper's two buckets. With tied embeddings layer 0 is left
out, because it would read out the input token itself. Where raw early states are much longer than normed ones, several
layers can differ from the last by all there is, ln 2, up to rounding; rounding then says which one is taken, and
`final_norm=True` is the way out. The extra cost is one product with the output embeddings per candidate and token, at
the last position only.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method import (
    GuardTarget,
    Method,
    cut_implausible,
    has_tied_embeddings,
    option,
    register,
    select_layers,
    variant_option,
)

_LEAST = -80.0
"""Of a log-probability whose exponential is computed; float32 has denormals below -87."""

_IN_CACHE = 2**19
"""Numbers of a tensor that a CPU has at hand, a few of them at a time; larger ones go through memory at every step."""


@register("dola")
@dataclass(frozen=True, kw_only=True)
class DoLa(Method):
    """Subtract the log-probabilities of the early layer that differs most from the last."""

    title = "DoLa"
    paper = (
        "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models, ICLR 2024, arXiv 2309.03883"
    )
    stations = ("logits",)

    strength: float = option(
        1.0,
        help="how much of the early layer's log-probabilities is subtracted; 0 switches DoLa off",
        range=(0.0, 2.0),
        neutral=0.0,
        paper="1",
    )
    plausibility: float = option(
        0.1,
        help="tokens less than this times as probable as the best are ruled out",
        range=(0.0, 1.0),
        neutral=0.0,
        tried=(0.5, 0.7),
        paper="relative_top = 0.1",
    )
    candidates: str = option(
        "even",
        help="candidate layers: 'even', 'low', 'high' (even layers of a half), or a range such as '8-16' or '20'",
        paper="even layers 0 to 14 (low) or 16 to 30 (high) of 32; HALC takes 0 to 30 for LLaVA",
    )
    divergence: str = option(
        "textbook",
        help="Jensen-Shannon divergence, or the released code's reversed terms",
        choices=("textbook", "reversed"),
        paper="Jensen-Shannon in the paper, reversed in the release",
        published="reversed",
    )
    final_norm: bool = option(False, help="apply the decoder's final norm to early layers", paper="not in the release")
    variant: str = variant_option("published has the released code's divergence; default the paper's formula")

    def contrasts(self) -> bool:
        """Strength 0 switches it off."""
        return self.strength > 0

    def early_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The candidate layers of this model."""
        depth = target.architecture.depth
        half = (depth // 2 + 1) // 2 * 2
        buckets = {"even": range(0, depth, 2), "low": range(0, half, 2), "high": range(half, depth, 2)}
        named = buckets.get(self.candidates)
        layers = tuple(named) if named is not None else select_layers(self.candidates, depth)
        if has_tied_embeddings(target.model):
            layers = tuple(layer for layer in layers if layer > 0)
        if not layers:
            raise ValueError(
                f"dola: candidates {self.candidates!r} leaves no layer of this model with {depth} layers "
                "(layer 0 reads out the input token where embeddings are tied); name others, for example '1-'"
            )
        return layers

    def combine_layers(self, final: Tensor, early: Tensor, layers: tuple[int, ...]) -> Tensor:
        """Per row, log p_final - strength log p_early of its farthest early layer, on plausible tokens."""
        log_final, rows = final.log_softmax(-1), torch.arange(final.shape[0], device=final.device)
        p_final = _probabilities(log_final)
        farthest, most = log_final, final.new_full(rows.shape, -math.inf)
        for part in early.split(_layers_at_once(early)):
            log_early = part.log_softmax(-1)
            found, layer = _divergence(log_final, p_final, log_early, self.divergence).max(0)
            # Of equal ones the earliest stays.
            farthest = torch.where((found > most)[:, None], log_early[layer, rows], farthest)
            most = torch.maximum(most, found)
        return cut_implausible(log_final - self.strength * farthest, log_final, self.plausibility)


def layer_divergence(log_final: Tensor, log_early: Tensor, kind: str = "textbook") -> Tensor:
    """[E, B] divergence of each early layer from the last.

    Args:
        log_final: [B, V] log-probabilities of the last layer.
        log_early: [E, B, V] of the early layers.
        kind: "textbook", (KL(p || M) + KL(q || M)) / 2, or "reversed", (KL(M || p) + KL(M || q)) / 2.
    """
    return _divergence(log_final, _probabilities(log_final), log_early, kind)


def _probabilities(logs: Tensor) -> Tensor:
    """Of log-probabilities, none less than e^-80: all such tokens together change a divergence by less than 1e-28.

    Numbers so small that they are stored as denormals take a processor ten times as long.
    """
    return logs.clamp_min(_LEAST).exp_()


def _divergence(log_final: Tensor, final: Tensor, log_early: Tensor, kind: str) -> Tensor:
    """`layer_divergence`, with the last layer's probabilities [B, V] beside their logarithms."""
    # Every further tensor of this size costs as much as the arithmetic.
    early = _probabilities(log_early)
    middle = final + early
    log_middle = middle.log().sub_(math.log(2))
    if kind == "reversed":
        gaps = (2 * log_middle).sub_(log_final).sub_(log_early)
        return middle.mul_(gaps).sum(-1) / 4
    from_early = early.mul_(log_early - log_middle).sum(-1)
    from_final = log_middle.neg_().add_(log_final).mul_(final).sum(-1)
    return (from_final + from_early) / 2


def _layers_at_once(early: Tensor) -> int:
    """How many layers of [E, B, V] are compared together: on a CPU what stays in its caches, elsewhere all."""
    if early.device.type != "cpu":
        return max(1, early.shape[0])
    return max(1, _IN_CACHE // early[0].numel()) if early.shape[0] else 1
