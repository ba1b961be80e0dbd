"""VCD: visual contrastive decoding (Mitigating Object Hallucinations through VCD, CVPR 2024, arXiv 2311.16922).

What the model still says of a picture drowned in noise comes from its language prior. VCD reads the prompt a second
time with diffusion noise on the picture and moves away from those logits.

Station: logits. The noise is that of step t of a 1000-step forward diffusion of the normalised pixel values x:

  beta_i = sigmoid(linspace(-6, 6, 1000))_i * (0.005 - 0.00001) + 0.00001,   abar_t = product of (1 - beta_i), i <= t
  x' = sqrt(abar_t) x + sqrt(1 - abar_t) eps,   eps ~ N(0, 1)

and the logits are z' = (1 + strength) z - strength z(x'), kept where z >= max z + ln(plausibility), before the
processors and warpers of `generate`. Steps count from 0, so that abar_t has t + 1 factors, as in the released code.
Defaults are the released command line's (strength 1, plausibility 0.1, step 500). The release draws noise without
reseeding between questions, so that its answers depend on the order of questions; here a seed gives every image the
same noise in every call and batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlm_guard.method import Branch, ContrastCall, ContrastMethod, option, plausibility_option, register
from vlm_guard.methods.shared.picture_parts import image_areas, image_lengths

STEPS = 1000


@register("vcd")
@dataclass(frozen=True, kw_only=True)
class VCD(ContrastMethod):
    """Move away from what the model says of a noised picture."""

    title = "VCD"
    paper = (
        "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding, "
        "CVPR 2024, arXiv 2311.16922"
    )

    strength: float = option(
        1.0,
        help="how far to move away from the noised picture's logits",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha = 1",
    )
    plausibility: float = plausibility_option("beta = 0.1 (0.2 in the released POPE script)")
    noise_step: int = option(
        500,
        help="step of the diffusion whose noise is added; 999 leaves little of the picture",
        range=(0, STEPS - 1),
        tried=(999,),
        paper="T = 500 in the released code (999 is reported for POPE)",
    )
    seed: int | None = option(
        0,
        help="seed of the noise of every call; none draws from torch's global generator",
        range=(0, 2**31 - 1),
    )

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same prompt with noised pixels."""
        pixels = call.pixels()
        if not pixels:
            # Prompts without any image: nothing to noise.
            active = torch.zeros_like(call.prompt.has_image)
            if bool(call.prompt.has_image.any()):
                raise ValueError(
                    "vcd noises pixel values, but generate was given none (image features made beforehand?); "
                    "pass the processor's pixel_values"
                )
        else:
            active = call.prompt.has_image
        noised = {name: self._noised(name, value, call.inputs) for name, value in pixels.items()}
        return Branch(prompt=call.prompt.same(), images=noised, active=active)

    def _noised(self, name: str, pixels: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """All images with noise; with a seed, the noise of an image is the same in any batch."""
        if self.seed is None:
            return add_noise(pixels, self.noise_step)
        strips = _strip_lengths(name, pixels, inputs)
        if strips is not None:
            return torch.cat([self._noised_image(part, None, self.seed) for part in pixels.split(strips, -1)], -1)
        parts = pixels.split(image_lengths(name, pixels, inputs))
        areas = image_areas(pixels, inputs)
        return torch.cat([self._noised_image(part, area, self.seed) for part, area in zip(parts, areas)])

    def _noised_image(self, image: Tensor, areas: Sequence[tuple[int, int]] | None, seed: int) -> Tensor:
        """One image [1, C, H, W], its tiles [1, T, C, H, W] (or the images of one row), or its packed patches.

        What pads images to the largest of a batch (columns, rows, tiles of zeros) stays as it is: some models
        recognise padding by its zeros, and the noise must not depend on it.
        """
        generator = torch.Generator().manual_seed(seed)
        if image.dim() < 4:
            return add_noise(image, self.noise_step, generator)
        tiles = image.clone().flatten(0, -4)
        for index, tile in enumerate(tiles):
            height, width = tile.shape[-2:] if areas is None else areas[index]
            inner = tile[:, :height, :width]
            if bool(inner.any()):
                tile[:, :height, :width] = add_noise(inner, self.noise_step, generator)
        return tiles.view_as(image)


@cache
def signal_share(step: int) -> float:
    """The share abar of the picture's variance that is left after a diffusion step (0 to 999)."""
    beta = torch.sigmoid(torch.linspace(-6, 6, STEPS)) * (0.005 - 1e-5) + 1e-5
    return float(torch.cumprod(1 - beta, 0)[step])


def add_noise(pixels: Tensor, step: int, generator: torch.Generator | None = None) -> Tensor:
    """Pixel values after `step` of the forward diffusion, same shape and type.

    Args:
        pixels: normalised pixel values of any shape.
        step: 0 to 999.
        generator: a CPU generator, so that the noise is the same on every device; None is torch's global one.
    """
    share = signal_share(step)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (share**0.5 * pixels.float() + (1 - share) ** 0.5 * noise).to(pixels.dtype)


def _strip_lengths(name: str, pixels: Tensor, inputs: Mapping[str, Any]) -> list[int] | None:
    """Where the patches of all images lie side by side in one row (MiniCPM-V), how many columns each image has."""
    sizes = inputs.get("target_sizes_videos" if "video" in name else "target_sizes")
    if not isinstance(sizes, Tensor) or pixels.dim() != 4 or pixels.shape[0] != 1:
        return None
    lengths = (sizes.prod(-1) * pixels.shape[-2]).tolist()
    return lengths if sum(lengths) == pixels.shape[-1] else None
