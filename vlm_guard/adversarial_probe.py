"""How strongly the features of each image patch react to a small adversarial change of the pixels.

The vision tower alone is run, with gradients for the pixels only. Every image is attacked on its own, from the same
random start, so that the result does not depend on the other images of a batch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_guard.vision_tower import VisionTower

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attack:
    """Projected gradient ascent on the squared change of the tower's output.

    Attributes:
        radius: [3] largest change of a channel, in normalised pixels.
        step: [3] change per iteration.
        iterations: number of iterations.
        seed: of the random start inside the radius.
    """

    radius: Tensor
    step: Tensor
    iterations: int
    seed: int

    def __call__(self, encode: Encode, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] float32 pixels near `pixels` whose features are far from those of `pixels`.

        Args:
            encode: from pixels to features [N, ...]; differentiable.
            pixels: [N, 3, H, W].
        """
        radius, step = (item.to(pixels.device).view(1, 3, 1, 1) for item in (self.radius, self.step))
        # Generation may run in inference mode, whose tensors cannot take part in a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            original = pixels.detach().clone().float()
            with torch.no_grad():
                features = encode(original).float()
            generator = torch.Generator().manual_seed(self.seed)
            start = torch.rand(original.shape[1:], generator=generator).to(original.device) * 2 - 1
            moved = original + radius * start
            for _ in range(self.iterations):
                moved.requires_grad_(True)
                change = (encode(moved).float() - features).square().flatten(1).mean(-1).sum()
                (gradient,) = torch.autograd.grad(change, moved)
                moved = moved.detach() + step * gradient.sign()
                moved = torch.minimum(torch.maximum(moved, original - radius), original + radius)
        return moved.detach()


@dataclass(frozen=True, eq=False)
class Probe:
    """The tower, the attack on it, the layers whose change is read, and the attention modules to mask."""

    tower: VisionTower
    attack: Attack
    read: tuple[nn.Module, ...]
    masked: tuple[nn.Module, ...]


@contextmanager
def recorded(modules: tuple[nn.Module, ...], into: list[Tensor]) -> Iterator[None]:
    """Inside, the outputs of `modules` are appended to `into`."""

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        into.append((output[0] if isinstance(output, tuple) else output).detach().float())

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(record).remove)
        yield


def uncertainty_map(original: list[Tensor], moved: list[Tensor]) -> Tensor:
    """[N, P] uncertainty of P patches in [0, 1].

    Args:
        original: per layer [N, P, C] outputs for the image.
        moved: the same for the attacked image.

    The length of the change, scaled to [0, 1] over the patches of each image in every layer, mean over layers.
    """
    maps = []
    for before, after in zip(original, moved):
        change = (after - before).norm(dim=-1)
        low, high = change.amin(-1, keepdim=True), change.amax(-1, keepdim=True)
        maps.append((change - low) / (high - low).clamp_min(torch.finfo(change.dtype).tiny))
    return torch.stack(maps).mean(0)


def uncertain_patches(uncertainty: Tensor, threshold: float) -> Tensor:
    """[N, P] bool: patches more than `threshold` (population) standard deviations above their image's mean."""
    mean, deviation = uncertainty.mean(-1, keepdim=True), uncertainty.std(-1, correction=0, keepdim=True)
    return uncertainty - mean > threshold * deviation


def probe_uncertainty(guard: "Guard", probe: Probe, method: str, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """[N, P] uncertainty of the patches of the images in the arguments of a tower.

    Raises:
        ValueError: the tower does not take [N, 3, H, W] pixels, or packs its images into one sequence.
    """
    settings = {name: value for name, value in kwargs.items() if not name.startswith("output_")}
    pixels = settings.pop("pixel_values", None) if not args else args[0]
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or pixels.shape[1] != 3:
        raise ValueError(f"{method} needs a vision tower that reads [images, 3, height, width] pixels, not patches")

    def encode(moved: Tensor) -> Tensor:
        return probe.tower.module.forward(moved.to(pixels.dtype), *args[1:], **settings)[0]

    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    guard.probing = True
    try:
        moved = probe.attack(encode, pixels)
        for images, into in zip((pixels, moved), seen):
            with torch.no_grad(), recorded(probe.read, into):
                encode(images)
    finally:
        guard.probing = False
    if seen[0][0].shape[0] != pixels.shape[0]:
        raise ValueError(f"{method} cannot tell images apart in a vision tower that packs them into one sequence")
    first = int(probe.tower.has_class_token)
    return uncertainty_map(*([layer[:, first:] for layer in layers] for layers in seen))
