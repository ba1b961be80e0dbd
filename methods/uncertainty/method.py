"""Masking of uncertain visual tokens in the vision tower (arXiv 2510.09008, NeurIPS 2025).

Patches whose features change most under a tiny adversarial change of the pixels are the ones the tower is unsure of,
and what models hallucinate from. With F the tower, k and alpha in pixel units (0 to 255) and f_l its layer outputs:

    probe  x <- Proj( x + alpha sign grad ||F(x) - F(x0)||^2 ),  ||x - x0||_inf <= k, from a random start, n times
    U_j    = mean over layers l of S of || f_l(x)_j - f_l(x0)_j ||, each scaled to [0, 1] over the image's patches
    M_j    = 0 where (U_j - mean) / std > sigma, else 1;  the class token is kept
    mask   attention output of token j times M_j in layers T of the tower, before it is added to the residual stream

Station: vision. Once per image and call, before the decoder runs; decoding is untouched.

Where the values come from: k = 3, alpha = 1, n = 200, S = 1 to 10 and T = 13 to 17 of 24 layers (CLIP ViT-L/336; given
here as shares of the depth) and sigma = 1.1 (LLaVA-1.5-7B, greedy; 1.2 for 13B, other values beside other methods) are
the paper's. Chosen here: layers are counted from 0, F is the tower's last hidden state, the standard deviation is the
population's (as in a third-party patch), and all images start from the same random change. One pixel unit is the
processor's rescale factor over its channel standard deviation. `strength` below 1 is the paper's soft mask.

Cost: n forward and backward passes of the tower, in float32 for the pixels, once for a picture however many questions
are asked about it. Beside a contrast method with a second image (VCD) that image is probed and masked as well. Towers
that pack several images into one sequence are refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_guard.method import (
    Finding,
    FindingsCall,
    GuardTarget,
    Method,
    PictureMap,
    VisionEditCall,
    VisionPassCall,
    VisionPlan,
    describe_vision_tower,
    option,
    register,
    select_layers,
)
from vlm_guard.methods.uncertainty.adversarial_probe import Attack, Probe, ProbedImages, uncertain_patches


@register("uncertainty")
@dataclass(frozen=True, kw_only=True)
class UncertaintyMasking(Method):
    """Silence patches in the vision tower whose features an adversarial probe moves most."""

    title = "Uncertainty masking"
    paper = (
        "On Epistemic Uncertainty of Visual Tokens for Object Hallucinations in Large Vision-Language Models, "
        "NeurIPS 2025, arXiv 2510.09008"
    )
    stations = ("vision",)
    cross_attention = ""
    needs = ("processor", "gradients")
    compiles = True

    strength: float = option(
        1.0,
        help="share of an uncertain token's attention output that is removed",
        range=(0.0, 1.0),
        neutral=0.0,
        paper="1; 0.9 is the soft mask of an ablation",
    )
    threshold: float = option(
        1.1,
        help="a token is uncertain this many standard deviations above the mean",
        range=(-10.0, 100.0),
        paper="sigma_th; 1.1 for LLaVA-1.5-7B with greedy decoding",
    )
    radius: float = option(3.0, help="largest pixel change, 0 to 255", range=(0.0, 255.0), paper="k = 3 for CLIP-L/336")
    step: float = option(1.0, help="pixel change per iteration", range=(0.0, 255.0), paper="alpha = 1")
    iterations: int = option(200, help="iterations of the probe", range=(1, 10000), paper="200 for CLIP-L/336")
    seed: int = option(0, help="seed of the probe's random start", range=(0, 2**31), paper="not given")
    probe_layers: str = option("4%-46%", help="tower layers whose change is measured", paper="S = 1 to 10 of 24")
    layers: str = option("54%-75%", help="tower layers in which tokens are masked", paper="13 to 17 of 24")
    pixel_std: str = option(
        "",
        help="channel standard deviations of the normalised pixels, comma separated; empty takes the processor's",
        paper="the processor's",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixel_std:
            object.__setattr__(self, "needs", ("gradients",))

    def active_layers(self, target: GuardTarget) -> tuple[int, ...]:
        """No decoder layer."""
        return ()

    def prepare(self, target: GuardTarget) -> Probe:
        """The tower's layers, and the attack in normalised pixels.

        Raises:
            ValueError: the model has no usable tower, or the pixel statistics are not three numbers.
        """
        tower = describe_vision_tower(target.model, self.name)
        scale = 1 / 255
        if self.pixel_std:
            try:
                std = [float(part) for part in self.pixel_std.split(",")]
            except ValueError:
                std = []
        else:
            settings = target.processor.image_processor
            std = list(settings.image_std) if settings.do_normalize else [1.0, 1.0, 1.0]
            scale = settings.rescale_factor if settings.do_rescale else 1.0
        if len(std) != 3 or min(std) <= 0:
            raise ValueError(f"uncertainty: pixel_std must be three numbers above 0, given {self.pixel_std or std!r}")
        unit = scale / torch.tensor(std)
        return Probe(
            tower=tower,
            attack=Attack(radius=self.radius * unit, step=self.step * unit, iterations=self.iterations, seed=self.seed),
            read=tuple(tower.layers[layer] for layer in select_layers(self.probe_layers, tower.depth)),
            masked=select_layers(self.layers, tower.depth),
        )

    def vision_plan(self, target: GuardTarget, prepared: Probe) -> VisionPlan | None:
        """The attention outputs of the masked layers; nothing at strength 0."""
        return None if self.strength == 0 else VisionPlan(tower=prepared.tower, edited={"attention": prepared.masked})

    def begin_vision(self, call: VisionPassCall) -> None:
        """Probe the images that enter the tower."""
        probe: Probe = call.prepared
        uncertainty = ProbedImages(probe, self.name).maps(call)
        vars(call.found).setdefault("maps", []).append(uncertainty.cpu())
        factor = 1 - self.strength * uncertain_patches(uncertainty, self.threshold).float()
        # [N, T, 1]: a class token in front of the patches is never masked.
        factors = torch.nn.functional.pad(factor, (int(probe.tower.has_class_token), 0), value=1.0)[..., None]
        call.memory.factors = factors

    def findings(self, call: FindingsCall) -> list[Finding]:
        """The uncertainty map of the first picture, where its patches form a square."""
        maps = getattr(call.kept, "maps", None)
        if not maps:
            return []
        values = maps[0][0]
        side = round(len(values) ** 0.5)
        if side * side != len(values):
            return []
        count = int(uncertain_patches(maps[0], self.threshold)[0].sum())
        return [
            PictureMap(
                title="Uncertainty masking: what the tower is unsure of",
                text="Bright where a tiny change of the pixels moves the tower's features most; "
                f"{count} of {len(values)} patches are silenced.",
                values=values.view(side, side).float().numpy(),
            )
        ]

    def edit_vision(self, call: VisionEditCall) -> Tensor:
        """Mask the uncertain tokens of these images."""
        return call.hidden * call.memory.factors.to(device=call.hidden.device, dtype=call.hidden.dtype)
