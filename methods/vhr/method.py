"""VHR: vision-aware head reinforcement (Cracking the Code of Hallucination in LVLMs, ACL 2025, arXiv 2412.13949).

A head whose output changes when the image is taken away looks at the image. Such heads are made stronger. With a_h the
output of head h (before the output projection) at the last prompt position, per layer, in the order of the layers:

    VHD_h = || a_h(image, text) - a_h(text) ||,    TA_h = || a_h(text) ||^2
    VHD_h := 0 where VHD_h > mean + std and TA_h > mean + std        (heads that fire without the image)
    H     = {h : VHD_h > median of VHD},    a_h := alpha a_h for h in H

Station: head outputs of all rows in chosen layers, the prompt's included; heads are chosen once per prompt and kept.
The text stream is the same prompt with the visual tokens and their markers deleted.

`approximation` says how the heads are found, and what that costs before the first token (n the prompt's length, t that
without image tokens, often a tenth of it):
  none               both streams go through the layers side by side, each at its own length, and each layer is scored
                     after the layers below it were reinforced, in both: 1 + t/n of the prompt. This is the paper's
                     layer-sequential order.
  plain text stream  the text stream is read first, without reinforcement; the image stream is scored against it and
                     reinforced layer by layer: 1 + t/n as well.
  parallel           both streams are read without reinforcement, all layers scored, then the prompt is read again:
                     2 + t/n. Not cheaper here; it is what the known third-party port does.
Beside other methods that act inside the decoder, the scoring of "none" is a reading of its own (2 + t/n).
Models that read images in cross-attention layers (Mllama) skip these layers for a prompt without image, so the text
stream has no output there, a_h(text) = 0. Decoding costs a multiplication.

Where the values come from: alpha = 2, the second layer and the last 14 of 32, the outlier rule, the median and the
order of the layers are the paper's. The default counts the last layers as a share of the depth, because the last 14
would be every layer of a small model. Not spelled out in the paper and chosen here: TA is squared (as printed;
`text_norm`), std is the population's, both streams are reinforced, all positions are scaled, and median means the
lower one, so that an even number of heads gives exactly half.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method import (
    AttentionCall,
    Finding,
    FindingsCall,
    ForwardCall,
    GuardTarget,
    MarkedHeads,
    Method,
    TwoStreams,
    all_heads,
    option,
    own_heads,
    register,
    select_attending_layers,
)
from vlm_guard.methods.shared.prompt_pass import prompt_inputs
from vlm_guard.methods.vhr.head_scoring import HeadScoring


@register("vhr")
@dataclass(frozen=True, kw_only=True)
class VHR(Method):
    """Strengthen the heads whose output depends on the image most."""

    title = "VHR"
    paper = "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence, ACL 2025, arXiv 2412.13949"
    stations = ("attention",)
    needs = ("second branch",)
    rows = "all"
    whole_prompt = "all"
    steady = True
    cross_attention = ""
    compiles = True

    strength: float = option(
        2.0, help="factor of the chosen heads' outputs", range=(0.0, 10.0), neutral=1.0, paper="alpha = 2 in the paper"
    )
    remove_outliers: bool = option(
        True, help="never choose heads that fire strongly without the image", paper="Section on outlier removal"
    )
    text_norm: str = option(
        "squared",
        help="how strongly a head fires without the image",
        choices=("squared", "plain"),
        paper="TA, printed with exponent 2; the paper leaves room for either",
    )
    approximation: str = option(
        "none",
        help="how heads are found: see the method's documentation",
        choices=("none", "plain text stream", "parallel"),
        paper="none is the paper's; parallel is a third-party port's",
    )
    layers: str = option(
        "1,56%-",
        help="decoder layers to edit",
        paper="second and last 14 of 32 for LLaVA-1.5-7B, last 18 of 32 for InstructBLIP-7B",
    )

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers of `layers` that have attention heads."""
        return select_attending_layers(self.layers, target)

    def reads_beside(self) -> bool:
        """Both streams go through the layers side by side, unless another way was chosen."""
        return self.approximation == "none" and self.strength != 1

    def reads_ahead(self, target: GuardTarget, prepared: Any) -> str:
        """The other ways to find heads read a prompt beforehand."""
        if self.approximation == "none":
            return ""
        return f"approximation={self.approximation!r} reads the prompt beforehand; approximation='none' does not"

    def begin_forward(self, call: ForwardCall) -> None:
        """Begin the scoring when a prompt is read for the first time."""
        shared = call.state.memory(self.name, -1)
        if self.strength == 1 or hasattr(shared, "scoring"):
            return
        if call.state.streams is not None:
            shared.scoring = call.state.streams
            return
        end, length = call.state.offset + call.inputs["input_ids"].shape[1], call.state.prompt_length
        if length is not None and end < length:
            raise ValueError("vhr needs the whole prompt in one pass; do not set prefill_chunk_size with it")
        layers = frozenset(self.active_layers(call.guard.target))
        inputs = call.inputs if length is None else prompt_inputs(call.inputs, end, length)
        shared.scoring = HeadScoring(self.name, call, inputs, layers)
        shared.scoring.begin(inputs, self.approximation)

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """Score the heads of this layer when its output is known; afterwards the scale that was chosen."""
        scoring: TwoStreams | None = getattr(call.state.memory(self.name, -1), "scoring", None)
        if scoring is None:
            if self.strength == 1:
                return None
            raise ValueError("vhr found no prompt with an image to choose its heads from")
        if call.layer not in scoring.scales:
            pair = scoring.outputs(call)
            if pair is not None:
                scoring.choose(call.layer, self._scale(call, *pair))
        scale = scoring.scale(call.layer)
        return None if scale is None else AttentionEdit(head_scale=scale)

    def _scale(self, call: AttentionCall, image: Tensor, text: Tensor) -> Tensor:
        """[M, H] factor of every head of this process, from the head outputs [M, H, D] of both streams."""
        target = call.guard.target
        pair = [all_heads(part, 1, target) for part in (image, text)]
        chosen = vision_aware_heads(*pair, squared=self.text_norm == "squared", outliers=self.remove_outliers)[1]
        return torch.where(own_heads(chosen, 1, call.query.shape[1], target), self.strength, 1.0)

    def findings(self, call: FindingsCall) -> list[Finding]:
        """The heads that were strengthened."""
        scales = getattr(getattr(call.state.memory(self.name, -1), "scoring", None), "scales", {})
        if not scales:
            return []
        marked = {layer: (scale[0].cpu() != 1).numpy() for layer, scale in sorted(scales.items())}
        total = sum(int(row.sum()) for row in marked.values())
        text = (
            f"Rows are layers, columns heads. Dots: {total} heads whose output changes most without the picture, "
            f"multiplied by {self.strength:g}."
        )
        return [MarkedHeads(title="VHR: heads it strengthened", text=text, marked=marked)]


def vision_aware_heads(
    image: Tensor, text: Tensor, *, squared: bool = True, outliers: bool = True
) -> tuple[Tensor, Tensor]:
    """Vision-aware head divergence and the heads to reinforce.

    Args:
        image: [M, H, D] head outputs of M rows with their image.
        text: [M, H, D] the same without it.
        squared: whether TA is the squared norm.
        outliers: whether heads that fire without the image are removed.

    Returns:
        VHD [M, H] float32 after the removal, and [M, H] bool, the heads above its median.
    """
    image, text = image.float(), text.float()
    divergence, activity = (image - text).norm(dim=-1), text.norm(dim=-1)
    if squared:
        activity = activity.square()
    if outliers:
        firing = _above(divergence) & _above(activity)
        divergence = torch.where(firing, 0.0, divergence)
    return divergence, divergence > divergence.median(-1, keepdim=True).values


def _above(values: Tensor) -> Tensor:
    """Which entries exceed mean + std of their row."""
    return values > values.mean(-1, keepdim=True) + values.std(-1, correction=0, keepdim=True)
