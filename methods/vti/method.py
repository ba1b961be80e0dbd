"""VTI: visual and textual intervention (Reducing Hallucinations in LVLMs via Latent Space Steering, ICLR 2025,
arXiv 2410.15778).

What a model makes up comes with a shift of its hidden states that is much the same from picture to picture. VTI
measures such shifts once per model and turns hidden states along them: in the decoder, from text about absent things
towards text about what is there; in the vision tower, towards the mean of its features over many maskings of a picture.

Stations: vision and hidden. With m what the feed-forward network of a layer adds to the residual stream, in every layer
and every row of the prompt and the answer (in the tower: every token),

  m' = |m| unit( unit(m) + 0.1 * strength * unit(direction_l) )

The directions come from the model's profile: `vlm-guard calibrate MODEL --only vti` measures them from pictures without
labels (`methods/vti/measuring.py` says how, and how that differs from the release, whose captions have no licence).

Where the values come from: strength 0.9 for both is the release's README; its script has 0.8 for text and 0 for the
picture. The factor 0.1 is hidden in the released layer and kept. The released code has one direction for every patch,
which fixes their number; here it is their mean. Sign as in the code: in the tower towards "masked minus clean".

Cost: a few vector operations per layer and row, in the decoder for every token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method import (
    Fact,
    GuardTarget,
    HiddenEditCall,
    MeasureCall,
    Method,
    Part,
    VisionEditCall,
    VisionPlan,
    VisionTower,
    describe_vision_tower,
    option,
    register,
    select_attending_layers,
    select_layers,
    unpack_vectors,
)
from vlm_guard.methods.shared.steering import Direction, turn
from vlm_guard.methods.vti.measuring import measure_directions

# Of the released layer, beside its strength.
HIDDEN_FACTOR = 0.1


@dataclass(frozen=True, eq=False)
class Directions:
    """What hidden states are turned to, by layer; of the tower with the tower, or None where it is left alone."""

    text: dict[int, Direction]
    vision: dict[int, Direction]
    tower: VisionTower | None


@register("vti")
@dataclass(frozen=True, kw_only=True)
class VTI(Method):
    """Turn hidden states of tower and decoder along directions measured once for a model."""

    title = "VTI"
    paper = "Reducing Hallucinations in Vision-Language Models via Latent Space Steering, ICLR 2025, arXiv 2410.15778"
    measurement = ("vti", "directions of VTI")
    stations = ("vision", "hidden")
    needs = ("calibration",)
    hidden_rows = "all"
    cross_attention = "a learned gate stands between the feed-forward network of such a layer and what is added"

    text_strength: float = option(
        0.9,
        help="how far the decoder's feed-forward outputs are turned; 0 leaves the decoder alone",
        range=(0.0, 100.0),
        neutral=0.0,
        tried=(0.4, 3.0),
        paper="alpha_text = 0.9 in the release's README, 0.8 in its script",
    )
    vision_strength: float = option(
        0.9,
        help="how far the vision tower's feed-forward outputs are turned; 0 leaves the tower alone",
        range=(0.0, 100.0),
        neutral=0.0,
        paper="alpha_image = 0.9 in the release's README, 0 in its script",
    )
    layers: str = option("all", help="decoder layers that are turned", paper="all in the release")
    vision_layers: str = option("all", help="layers of the vision tower that are turned", paper="all in the release")
    text_direction: str = option(
        "", help="direction by decoder layer, as calibrate writes it; empty takes the profile", paper="measured"
    )
    vision_direction: str = option(
        "", help="direction by tower layer, as calibrate writes it; empty takes the profile", paper="measured"
    )

    @classmethod
    def measure(cls, call: MeasureCall) -> dict[str, Fact]:
        """The directions of decoder and tower, from unlabelled pictures."""
        return measure_directions(call.model, call.processor, call.descriptions, call.progress)

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """The layers of `layers` that have attention, as only these are known part by part."""
        return select_attending_layers(self.layers, target)

    def prepare(self, target: GuardTarget) -> Directions:
        """The directions of this model.

        Raises:
            ValueError: neither options nor profile have them, or they are another model's.
        """
        architecture = target.architecture
        text, vision, tower = {}, {}, None
        if self.text_strength > 0:
            vectors = self._known(target, "text", (architecture.depth, architecture.hidden_size))
            text = {layer: Direction.of(vectors[layer]) for layer in self.active_layers(target)}
        if self.vision_strength > 0:
            tower = describe_vision_tower(target.model, "vti (vision_strength=0 leaves the tower alone)")
            width = int(getattr(tower.module.config, "hidden_size", 0))
            vectors = self._known(target, "vision", (tower.depth, width))
            vision = {layer: Direction.of(vectors[layer]) for layer in select_layers(self.vision_layers, tower.depth)}
        return Directions(text, vision, tower)

    def _known(self, target: GuardTarget, kind: str, shape: tuple[int, int]) -> Tensor:
        text, name = getattr(self, f"{kind}_direction"), f"vti_{kind}_direction"
        if not text and target.profile is not None:
            text = target.profile.value(name)
        if not text:
            raise ValueError(
                f"vti needs the {kind} direction of this {target.architecture.model_type} model, and no profile has "
                f"it. Run 'vlm-guard calibrate MODEL --only vti' once, or set {kind}_strength=0"
            )
        return unpack_vectors(str(text), shape, f"vti: {kind}_direction")

    def hidden_parts(self, target: GuardTarget, prepared: Directions) -> dict[Part, tuple[int, ...]]:
        """The feed-forward outputs of the decoder."""
        return {"mlp": tuple(prepared.text)} if prepared.text else {}

    def edit_hidden(self, call: HiddenEditCall) -> Tensor | None:
        """The decoder's feed-forward outputs, turned."""
        return _turned(call.prepared.text, call.layer, call.hidden, self.text_strength)

    def vision_plan(self, target: GuardTarget, prepared: Directions) -> VisionPlan | None:
        """The feed-forward outputs of the tower."""
        if prepared.tower is None:
            return None
        return VisionPlan(tower=prepared.tower, edited={"mlp": tuple(prepared.vision)})

    def edit_vision(self, call: VisionEditCall) -> Tensor | None:
        """The tower's feed-forward outputs, turned."""
        return _turned(call.prepared.vision, call.layer, call.hidden, self.vision_strength)


def _turned(directions: dict[int, Direction], layer: int, hidden: Tensor, strength: float) -> Tensor:
    towards = directions[layer]
    if towards.unit.device != hidden.device:
        towards = directions[layer] = towards.to(hidden.device)
    with torch.no_grad():
        return turn(hidden, towards, HIDDEN_FACTOR * strength)
