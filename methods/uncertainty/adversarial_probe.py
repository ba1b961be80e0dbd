"""How strongly the features of each image patch react to a small adversarial change of the pixels.

The vision tower alone is run, with gradients for the pixels only. Every image is attacked on its own, from the same
random start, so that the result does not depend on the other images of a batch and serves later calls with this image.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vlm_guard.method import VisionPassCall, VisionTower

Encode = Callable[[Tensor], Tensor]

# By vision tower, for as long as it lives: the maps of the images it was probed with, oldest first.
_KNOWN: "WeakKeyDictionary[nn.Module, dict[bytes, Tensor]]" = WeakKeyDictionary()


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
    """The tower, the attack on it, the layers whose change is read, and the indices of those to mask."""

    tower: VisionTower
    attack: Attack
    read: tuple[nn.Module, ...]
    masked: tuple[int, ...]


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


class ProbedImages:
    """Probes images once: the same picture in another row, a later call or under a later guard is looked up.

    An image's map depends on its pixels, on the tower's weights and on the attack. A map is found again by the pixels
    together with the tower's features of them, so that other weights (another adapter) are another image; these
    features cost one pass, a probe some hundreds.

    Args:
        probe: the attack and what is read.
        method: named in errors.
    """

    KEPT = 256
    """Maps that are kept; one has a float for each patch."""

    def __init__(self, probe: Probe, method: str) -> None:
        self.probe, self.method = probe, method
        self._known = _KNOWN.setdefault(probe.tower.module, {})
        attack, read = probe.attack, [probe.tower.layers.index(layer) for layer in probe.read]
        numbers = (attack.radius.tolist(), attack.step.tolist(), attack.iterations, attack.seed, read)
        self._settings = repr(numbers).encode()

    def maps(self, call: VisionPassCall) -> Tensor:
        """[N, P] uncertainty of the patches of the images that are about to enter the tower.

        Raises:
            ValueError: the tower does not take [N, 3, H, W] pixels, or packs its images into one sequence.
        """
        args = call.args
        settings = {name: value for name, value in call.kwargs.items() if not name.startswith("output_")}
        pixels = settings.pop("pixel_values", None) if not args else args[0]
        if not isinstance(pixels, Tensor) or pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"{self.method} needs a vision tower that reads [images, 3, height, width] pixels, not patches"
            )

        def encode(images: Tensor) -> Tensor:
            return call.encode(images.to(pixels.dtype), *args[1:], **settings)[0]

        if any(isinstance(value, Tensor) for value in (*args[1:], *settings.values())):
            # A mask, for example, belongs to these images in this order.
            return self._probe(encode, pixels)
        return self._look_up(encode, pixels)

    def _look_up(self, encode: Encode, pixels: Tensor) -> Tensor:
        pictures: dict[bytes, int] = {}
        order = [pictures.setdefault(_digest(image), len(pictures)) for image in pixels]
        first = [order.index(number) for number in range(len(pictures))]
        with torch.no_grad():
            # One by one: beside other images the features would be rounded otherwise, and the image not be known again.
            features = [encode(pixels[number : number + 1]) for number in first]
        if any(seen.shape[0] != 1 for seen in features):
            self._refuse_packing()
        keys = [self._settings + picture + _digest(seen) for picture, seen in zip(pictures, features)]
        fresh = [number for number, key in enumerate(keys) if key not in self._known]
        if fresh:
            found = self._probe(encode, pixels[[first[number] for number in fresh]])
            self._known |= {keys[number]: image for number, image in zip(fresh, found)}
        maps = torch.stack([self._known[key].to(pixels.device) for key in keys])
        for key in list(self._known)[: max(0, len(self._known) - self.KEPT)]:
            del self._known[key]
        return maps[order]

    def _probe(self, encode: Encode, pixels: Tensor) -> Tensor:
        seen: tuple[list[Tensor], list[Tensor]] = ([], [])
        moved = self.probe.attack(encode, pixels)
        for images, into in zip((pixels, moved), seen):
            with torch.no_grad(), recorded(self.probe.read, into):
                encode(images)
        if seen[0][0].shape[0] != pixels.shape[0]:
            self._refuse_packing()
        first = int(self.probe.tower.has_class_token)
        return uncertainty_map(*([layer[:, first:] for layer in layers] for layers in seen))

    def _refuse_packing(self) -> NoReturn:
        raise ValueError(f"{self.method} cannot tell images apart in a vision tower that packs them into one sequence")


def _digest(values: Tensor) -> bytes:
    """What stands for the contents of a tensor."""
    raw = values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(raw, digest_size=16).digest()
