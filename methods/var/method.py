"""VAR: visual attention redistribution (See What You Are Told, ICLR 2025, arXiv 2503.03321).

Some tokens, visual ones among them, behave like BOS: they draw much attention and carry little. They are found by
massive activations in a few fixed dimensions of the hidden state. In heads that really look at the image, VAR takes
part of the attention of all such sink tokens, textual and visual, and gives it to the other visual tokens.

Station: attention weights of text rows after the image, and of every generated token. Steps, per layer and row:
  sinks      S = {t : max over d in D of |x_td| / rms(x_t) > threshold}, x the hidden state entering the layer
  heads      selected where the visual attention is >= `min_visual_mass`, its share on content tokens (visual, not in
             S) is >= `min_content_share`, and the prompt has a visual sink
  weights    sinks keep 1 - move_fraction of theirs; the visual content shares what was taken in proportion

Paper and released code name things differently; the options here are unambiguous. `move_fraction` is the paper's p
(0.6 by secondary sources), which is 1 - p of the released code (0.4 with its p = 0.6); the default follows the code
because the published figures come from it. `min_content_share` is the paper's rho and 1 - rho of the code (0.5 in
both). Generated tokens never become sinks. The release keeps the first picture's sinks for all later pictures and
edits the rows of visual tokens from the second picture on; neither is done here. The release also edits the last
layer although its option says otherwise; the paper leaves it alone: `layers` decides ("2-" is the release).
"""

from dataclasses import dataclass

import torch

from vlm_guard.kernels.attention_edit import TEXT_SINK, VISUAL_SINK, AttentionEdit, Segments
from vlm_guard.kernels.policies import MoveSinksToContent
from vlm_guard.method import (
    AttentionCall,
    Fact,
    Finding,
    FindingsCall,
    GuardTarget,
    HiddenCall,
    MarkedTokens,
    MeasureCall,
    Method,
    option,
    register,
    select_layers,
)
from vlm_guard.methods.var.sink_search import calibrate_sinks

PUBLISHED_THRESHOLD = 20.0


@dataclass(frozen=True)
class KnownSinks:
    """How sinks are recognised in one model.

    Attributes:
        dimensions: of massive activations; empty for a model without sinks.
        threshold: of their normalised activation.
        layers: in which that holds, as text; everywhere where nothing else is known.
    """

    dimensions: tuple[int, ...]
    threshold: float
    layers: str = "all"


@register("var")
@dataclass(frozen=True, kw_only=True)
class VAR(Method):
    """Move attention from sink tokens to visual content in image-centric heads."""

    title = "VAR"
    paper = "See What You Are Told: Visual Attention Sink in Large Multimodal Models, ICLR 2025, arXiv 2503.03321"
    measurement = ("sinks", "attention sinks, for VAR")
    stations = ("hidden", "attention")
    needs = ("calibration",)
    rows = "text"
    steady = True
    compiles = True
    observes_hidden = True

    move_fraction: float = option(
        0.4,
        help="share of every sink's attention that is given to the visual content",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="p in the paper (0.6 by secondary sources), 1 - p in the released code (0.4)",
    )
    min_content_share: float = option(
        0.5,
        help="a head is edited only where at least this share of its visual attention is on content tokens",
        range=(0.0, 1.0),
        paper="rho in the paper, 1 - rho in the released code; 0.5 for hallucination in both",
    )
    min_visual_mass: float = option(
        0.2,
        help="a head is edited only where at least this much of its attention is on visual tokens",
        range=(0.0, 1.0),
        paper="summ = 0.2 in the released code",
    )
    sink_threshold: float | None = option(
        None,
        help="normalised activation above which a token is a sink; none takes the profile's, or the published 20",
        range=(0.0, 1000.0),
        paper="tau = 20 in paper and code, for hidden sizes of 4096 and 5120",
    )
    sink_dimensions: str = option(
        "",
        help="hidden dimensions of massive activations, comma separated; empty takes the model's profile",
        paper="D; published for LLaMA-2 7B and 13B in the released code",
    )
    layers: str = option("2-", help="decoder layers to edit", paper="2 to the last in the released code")

    @classmethod
    def measure(cls, call: MeasureCall) -> dict[str, Fact]:
        """The dimensions that mark the tokens which draw attention, from which value on, and in which layers."""
        return calibrate_sinks(call)

    def prepare(self, target: GuardTarget) -> KnownSinks:
        """The sink rule from the options, or from the model's profile.

        Raises:
            ValueError: neither knows the sink dimensions of this model.
        """
        profile = target.profile
        dimensions = self._given_dimensions(target.architecture.hidden_size)
        known = None if profile is None else profile.value("sink_dimensions")
        layers = "all"
        if not dimensions:
            if known is None:
                raise ValueError(
                    f"var needs the sink dimensions of this {target.architecture.model_type} model, and no profile has "
                    "them. Run 'vlm-guard calibrate MODEL' once, or pass sink_dimensions and sink_threshold of this "
                    "very checkpoint"
                )
            dimensions = tuple(known)
            layers = (None if profile is None else profile.value("sink_layers")) or "all"
        threshold = self.sink_threshold
        if threshold is None and profile is not None:
            threshold = profile.value("sink_threshold")
        return KnownSinks(dimensions, PUBLISHED_THRESHOLD if threshold is None else threshold, layers)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """Those of `layers` in which sinks can be recognised; none of a model whose profile says that it has none."""
        sinks = self.prepare(target)
        known = select_layers(sinks.layers, target.architecture.depth) if sinks.dimensions else ()
        return tuple(layer for layer in super().active_layers(target) if layer in known)

    def why_idle(self, target: GuardTarget) -> str:
        """What the profile says about a model in which it edits no layer."""
        fact = None if target.profile is None else target.profile.facts.get("sink_dimensions")
        return "" if fact is None or self.active_layers(target) else fact.note

    def _given_dimensions(self, hidden_size: int) -> tuple[int, ...]:
        try:
            dimensions = tuple(int(part) for part in self.sink_dimensions.replace(" ", "").split(",") if part)
        except ValueError:
            raise ValueError(
                f"var: sink_dimensions must be numbers such as '1415,2533', given {self.sink_dimensions!r}"
            ) from None
        if any(not 0 <= dimension < hidden_size for dimension in dimensions):
            raise ValueError(f"var: sink_dimensions {dimensions} must lie in 0 to {hidden_size - 1}")
        return dimensions

    def observe_hidden(self, call: HiddenCall) -> None:
        """Find the sinks among the prompt tokens that enter this layer (again for every prompt and every row)."""
        rule: KnownSinks = call.prepared
        activation = sink_activation(call.hidden, rule.dimensions)
        state, first = call.state, call.state.offset
        real = state.real[:, first : first + call.hidden.shape[1]].to(activation.device)
        sinks = (activation > rule.threshold) & real
        if state.prompt_length is not None:
            sinks = sinks[:, : max(0, state.prompt_length - first)]
        if first:
            earlier = call.memory.sinks[:, :first].to(sinks.device)
            # An earlier answer in the cache, whose tokens never became sinks, lies between both.
            earlier = torch.nn.functional.pad(earlier, (0, first - earlier.shape[1]))
            sinks = torch.cat((earlier, sinks), 1)
        call.memory.sinks = sinks
        call.memory.edit = self._edit(state.visual.to(sinks.device)[:, : sinks.shape[1]], sinks, state.compiled)

    def _edit(self, visual: torch.Tensor, sinks: torch.Tensor, compiled: bool) -> AttentionEdit | None:
        # Without a visual sink the policy selects no head, so the layer keeps its own attention for the whole answer.
        # Asking waits for the device once a layer and prompt; a compiled step must not depend on the answer.
        if not compiled and not bool((visual & sinks).any()):
            return None
        policy = MoveSinksToContent(
            move_fraction=self.move_fraction,
            min_content_share=self.min_content_share,
            min_visual_mass=self.min_visual_mass,
        )
        return AttentionEdit(segments=Segments.build(visual, sinks), policy=policy)

    def edit_attention(self, call: AttentionCall) -> AttentionEdit | None:
        """The redistribution between this layer's segments; prompt segments serve all later tokens."""
        edit: AttentionEdit | None = call.memory.edit
        return edit

    def findings(self, call: FindingsCall) -> list[Finding]:
        """The sink tokens of the picture, in any layer."""
        visual = call.state.visual[0].cpu()
        edits = {layer: getattr(call.state.memory(self.name, layer), "edit", None) for layer in call.layers}
        kinds = {layer: edit.segments.ids[0].cpu() for layer, edit in edits.items() if edit is not None}
        if not kinds:
            return []
        in_picture = {layer: ids[visual[: len(ids)]] == VISUAL_SINK for layer, ids in kinds.items()}
        counts = ", ".join(
            f"layer {layer}: {int(sinks.sum())} visual, {int((kinds[layer] == TEXT_SINK).sum())} other"
            for layer, sinks in in_picture.items()
        )
        union = torch.stack(list(in_picture.values())).any(0)
        if not bool(union.any()):
            text = (
                "No token of the picture is a sink, and VAR edits a head only if there is one, so it changed nothing. "
                f"Sinks by layer: {counts}."
            )
            return [Finding(title="VAR: attention sinks", text=text)]
        text = f"Crossed-out patches draw attention without carrying content; part of it is moved. {counts}."
        return [
            MarkedTokens(
                title="VAR: visual sink tokens", text=text, marked=union.numpy(), name="the visual sink tokens"
            )
        ]


def sink_activation(hidden: torch.Tensor, dimensions: tuple[int, ...]) -> torch.Tensor:
    """[B, Q] float32: the largest RMS-normalised activation among `dimensions` of `hidden` [B, Q, hidden size]."""
    wide = hidden.to(torch.float32)
    inverse_rms = torch.rsqrt(wide.square().mean(-1) + 1e-6)
    return wide[..., list(dimensions)].abs().amax(-1) * inverse_rms
