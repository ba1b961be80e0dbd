"""DeCo: dynamic correction decoding (MLLM Can See?, ICLR 2025, arXiv 2410.11779).

What a model names although it is not in the picture, it often knows better some layers earlier: late layers let the
language prior speak louder. DeCo asks those earlier layers which of the tokens that are up for choice they believe in,
takes the layer that believes most, and adds its logits to the model's own.

Station: logits; no second branch. At every step, with l the model's logits, p = softmax(l), and z_e = output embeddings
applied to the final norm of the hidden state that enters layer e, q_e = softmax(z_e),

  candidates  C = the most probable tokens of p, up to and including the one at which their sum reaches top_p, at most k
  layer       (e*, y*) = argmax of q_e[y] over the layers e and the tokens y of C;  belief = q_e*[y*]
  logits      l'_y = l_y + strength * belief * z_e*[y] for y in C; all other tokens are ruled out

Where the values come from: strength 0.6, top_p 0.9, k 20 and layers 20 to 28 of 32 (here as a share of the depth) are
the released command line's, and so is the final norm, which DoLa's release leaves out. The candidates take the place of
the plausibility cut of contrast methods.

The release works on one prompt at a time, and its tokens outside C get minus infinity, which leaves a logits processor
(a grammar, `min_new_tokens`) nothing to choose from; here each row has its own layer, and tokens outside C keep their
order far below. Of the layers, layer 0 is left out with tied embeddings, because it would read out the input token.

Cost: one product with the output embeddings per layer and token, at the last position only, beside the model's own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method import (
    GuardTarget,
    Method,
    has_tied_embeddings,
    lower_implausible,
    option,
    register,
    select_layers_of,
)


@register("deco")
@dataclass(frozen=True, kw_only=True)
class DeCo(Method):
    """Add the logits of the earlier layer that believes most in one of the likely tokens."""

    title = "DeCo"
    paper = (
        "MLLM Can See? Dynamic Correction Decoding for Hallucination Mitigation in Multimodal LLMs, ICLR 2025, "
        "arXiv 2410.11779"
    )
    stations = ("logits",)
    final_norm = True

    strength: float = option(
        0.6,
        help="how much of the chosen layer's logits is added; 0 switches DeCo off",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha = 0.6 in the released command line",
    )
    top_p: float = option(
        0.9,
        help="candidates are the most probable tokens that together reach this probability",
        range=(0.0, 1.0),
        neutral=1.0,
        paper="threshold_top_p = 0.9 in the code",
    )
    top_k: int = option(
        20, help="there are at most so many candidates", range=(1, 1_000_000), paper="threshold_top_k = 20 in the code"
    )
    layers: str = option("62%-90%", help="layers whose entering states are read out", paper="20 to 28 of 32")

    def contrasts(self) -> bool:
        """Strength 0 switches it off."""
        return self.strength > 0

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """No layer's attention."""
        return ()

    def early_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers that are read out.

        Raises:
            ValueError: `layers` names only layer 0 of a model with tied embeddings, or none at all.
        """
        layers = select_layers_of(self.layers, target)
        if has_tied_embeddings(target.model):
            layers = tuple(layer for layer in layers if layer > 0)
        if not layers:
            raise ValueError(
                f"deco: layers {self.layers!r} leaves no layer of this model to read out (layer 0 is the input token "
                "where embeddings are tied); name others, for example '62%-90%'"
            )
        return layers

    def combine_layers(self, final: Tensor, early: Tensor, layers: tuple[int, ...]) -> Tensor:
        """Per row, the logits of the candidates with those of the layer that believes most in one of them."""
        values, candidates = final.topk(min(self.top_k, final.shape[-1]), dim=-1)
        probability = (values - final.logsumexp(-1, keepdim=True)).exp()
        # A token is a candidate while those before it have not reached top_p: the one that reaches it still is.
        kept = probability.cumsum(-1) - probability < self.top_p
        kept[:, 0] = True
        read = early.gather(-1, candidates.expand(early.shape[0], -1, -1))
        belief = (read - early.logsumexp(-1, keepdim=True)).masked_fill(~kept, float("-inf")).amax(-1)
        strongest = belief.max(0)
        chosen = read[strongest.indices, torch.arange(final.shape[0], device=final.device)]
        corrected = values + self.strength * strongest.values.exp()[:, None] * chosen
        corrected = torch.where(kept, corrected, lower_implausible(values))
        return lower_implausible(final).scatter(-1, candidates, corrected)
