"""PAINT: more attention to the image tokens that the vision tower itself marks (arXiv 2501.12206).

The class token of the vision tower tells which patches matter. Its attention in the first layer marks local detail;
its outliers in the second but last layer are summary tokens, which hold global information. With c the attention of
the class token to the patches, summed over heads:

    local   L = the int(P r) patches with the largest c in the first layer, without S
    summary S = {patch : c > q3 + 1.5 (q3 - q1)} in the second but last layer, q1 and q3 its quartiles
    scores  s'_ij = s_ij + alpha |s_ij|  (j in L),   s_ij + beta |s_ij|  (j in S)

Stations: one softmax row of two layers of the vision tower; attention scores of the row that predicts the next token
(the last prompt row and every generated one), all heads, in chosen decoder layers.

Where the values come from: alpha 0.7, r 0.25, layers 2 to 31 and the two vision layers are the released code's
defaults; beta is 0.3 there and 0.4 in the paper's chosen setting (secondary source), which is the default here. The
published gains also contain PAI's text-only contrast with gamma 1.1; it is a method of its own here: "paint+pai" with
`pai.gain=0`. Measured on the authors' published captions, the headline setting repeats itself (38 % repeated
4-grams): read repetition and recall beside CHAIR.

A tower without a class token (SigLIP) has no such row. `reference="mean patch"` uses the row of the mean query of all
patches instead; that is this project's substitute, not the paper's. Decoders whose visual tokens are not the tower's
patches one to one (tiles, merged or pooled patches) are refused. The release applies the first image's tokens to every
row of a batch, and the last image's when there are several; here each row has those of its own images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    GuardTarget,
    KeyEditMethod,
    VisionPlan,
    VisionRowCall,
    VisionTower,
    describe_vision_tower,
    option,
    refuse_split_tower,
    register,
    spread_over_visual_tokens,
)


@register("paint")
@dataclass(frozen=True, kw_only=True)
class PAINT(KeyEditMethod):
    """Raise the scores of the visual tokens that the vision tower's class token attends to."""

    title = "PAINT"
    paper = "PAINT: Paying Attention to INformed Tokens, arXiv 2501.12206"
    stations = ("vision", "attention")
    rows = "answer"

    local_gain: float = option(
        0.7,
        help="increase of local tokens' scores, in units of |score|",
        range=(0.0, 5.0),
        neutral=0.0,
        paper="alpha = 0.7 in paper and code",
    )
    summary_gain: float = option(
        0.4,
        help="increase of summary tokens' scores, in units of |score|",
        range=(0.0, 5.0),
        neutral=0.0,
        paper="beta = 0.4 in the paper's chosen setting (secondary source), 0.3 in the code",
    )
    local_share: float = option(
        0.25,
        help="share of an image's patches that are local tokens",
        range=(0.0, 1.0),
        paper="r = 0.25 in paper and code",
    )
    reference: str = option(
        "class token",
        help="whose attention row marks the tokens",
        choices=("class token", "mean patch"),
        paper="class token; mean patch is this project's substitute for towers without one",
    )
    layers: str = option("2-", help="decoder layers to edit", paper="2 to 31 of 32 in the code")

    def prepare(self, target: GuardTarget) -> VisionTower:
        """The vision tower.

        Raises:
            ValueError: the model has no usable tower, or it has no class token and no substitute was asked for.
        """
        tower = describe_vision_tower(target.model, self.name)
        refuse_split_tower(tower.module, self.name)
        if self.reference == "class token" and not tower.has_class_token:
            raise ValueError(
                f"paint takes its tokens from the class token of the vision tower, and that of "
                f"{target.architecture.model_type} ({type(tower.module).__name__}) has none; "
                "reference='mean patch' uses the mean query of its patches instead (not the paper's method)"
            )
        return tower

    def vision_plan(self, target: GuardTarget, prepared: VisionTower) -> VisionPlan:
        """The reference row of the first and of the second but last vision layer."""
        watched = tuple(sorted(set(_marking_layers(prepared).values())))
        return VisionPlan(tower=prepared, watched=watched, mean_query=self.reference == "mean patch")

    def observe_vision(self, call: VisionRowCall) -> None:
        """Keep the row, summed over heads, without the class token."""
        tower: VisionTower = call.prepared
        marked = call.weights.sum(1)[:, int(tower.has_class_token) :].cpu()
        for name in (name for name, layer in _marking_layers(tower).items() if layer == call.layer):
            vars(call.found).setdefault(name, []).append(marked)

    def edit_keys(self, call: AttentionCall) -> AttentionEdit | None:
        """The gains of the marked tokens, found once for all layers."""
        if not (self.local_gain or self.summary_gain):
            return None
        shared = call.state.memory(self.name, -1)
        if getattr(shared, "visual", None) is not call.state.visual:
            shared.gain = self._gain(call, getattr(shared, "gain", None))
            shared.visual = call.state.visual
        return AttentionEdit(gain=shared.gain.to(call.query.device))

    def _gain(self, call: AttentionCall, earlier: Tensor | None) -> Tensor:
        """[B, 1, 1, T] float32, zero but on marked visual tokens; those in the cache are as `earlier` has them."""
        state = call.state
        given = state.visual if state.prompt is None else state.prompt.visual
        cached = 0 if earlier is None else min(state.offset, earlier.shape[-1])
        given = given.clone()
        given[:, :cached] = False
        gain = given.new_zeros(given.shape, dtype=torch.float32) if not bool(given.any()) else self._marked(call, given)
        gain = gain.repeat_interleave(state.visual.shape[0] // gain.shape[0], 0)[:, None, None]
        if earlier is not None and cached:
            gain[..., :cached] = earlier[..., :cached]
        return gain

    def _marked(self, call: AttentionCall, visual: Tensor) -> Tensor:
        """[B, T] float32 gains of the visual tokens [B, T] whose pictures have just passed the vision tower."""
        seen = vars(call.found)
        if not seen:
            raise ValueError("paint saw no image pass the vision tower; pass pixel_values, not ready image features")
        gains = []
        for first, late in zip(seen["local"], seen["summary"]):
            local, summary = marked_tokens(first, late, self.local_share)
            gains.append(local * self.local_gain + summary * self.summary_gain)
        return spread_over_visual_tokens(gains, visual, self.name)


def _marking_layers(tower: VisionTower) -> dict[str, int]:
    """The tower's layers that mark local and summary tokens."""
    return {"local": 0, "summary": max(0, tower.depth - 2)}


def marked_tokens(first: Tensor, late: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Local and summary tokens of every image, both [N, P] bool.

    Args:
        first: [N, P] class-token attention in the first vision layer, summed over heads.
        late: [N, P] the same in the second but last.
        share: share of the patches that are local tokens.
    """
    lower, upper = torch.quantile(late, torch.tensor([0.25, 0.75]), dim=-1, keepdim=True)
    summary = late > upper + 1.5 * (upper - lower)
    local = torch.zeros_like(summary)
    local.scatter_(1, first.topk(int(first.shape[1] * share), dim=-1).indices, True)
    return local & ~summary, summary
