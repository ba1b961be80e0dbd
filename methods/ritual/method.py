"""RITUAL: random image transformations as a universal anti-hallucination lever (arXiv 2405.17821).

What a model still says of a picture that is turned, blurred or recoloured is likely to be in it. RITUAL reads the
prompt a second time with one random change of the picture, and adds those logits to the model's own.

Station: logits. With l the logits of the given picture and l_T those of the changed one,

  l' = l + strength * l_T,   kept where l >= max l + ln(plausibility)

Where the values come from: strength 3, the cut 0.1 and the six changes, one of which is drawn for each question with
equal chance, are the released code's: a horizontal flip, a vertical flip, a rotation by -180 to 180 degrees, other
colours (brightness, contrast, saturation by 0 to 2, hue by -0.5 to 0.5), a Gaussian blur (13 x 13, sigma 1.5 to 2) and
a crop (8 to 100 % of the area, enlarged again). The figures of the paper are sampled at temperature 1, not greedy.

Where it departs: the code changes the picture before the processor resizes and normalises it, which is not there any
more in `generate`; here the picture is taken back out of the pixel inputs, changed at the model's resolution and put
back, so that the number of visual tokens stays. Of pictures that are cut into tiles, each tile is changed. The change
is drawn from the picture's content and `seed`, so that a picture has the same one in any batch and on any day.

The second branch decodes in the same passes as the first, as in every contrast; its prompt with its picture costs as
much as the first. Edits of attention act on the rows of the given picture only.
"""

from dataclasses import dataclass

from torch import Tensor

from vlm_guard.method import (
    Branch,
    ContrastCall,
    ContrastMethod,
    GuardTarget,
    cut_implausible,
    option,
    plausibility_option,
    register,
)
from vlm_guard.methods.ritual.changed_pictures import PictureChange, PixelScale
from vlm_guard.methods.ritual.random_change import read_names


@register("ritual")
@dataclass(frozen=True, kw_only=True)
class RITUAL(ContrastMethod):
    """Move towards what the model says of the picture after a random change."""

    title = "RITUAL"
    paper = "RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in LVLMs, arXiv 2405.17821"
    needs = ("processor", "second branch")

    strength: float = option(
        3.0,
        help="how much of the changed picture's logits is added",
        range=(0.0, 10.0),
        neutral=0.0,
        paper="alpha = 3 in the released code",
    )
    plausibility: float = plausibility_option("beta = 0.1 in the released code")
    changes: str = option(
        "all",
        help="what to draw from: 'all', or some of horizontal flip, vertical flip, rotation, colour, blur, crop",
        paper="all six with equal chance in the released code",
    )
    seed: int = option(0, help="another number draws other changes", range=(0, 2**31 - 1), paper="one draw a question")

    def prepare(self, target: GuardTarget) -> PixelScale:
        """The scale of the pixel inputs.

        Raises:
            ValueError: `changes` cannot be read, or the processor does not say how it normalises pictures.
        """
        read_names(self.changes)
        return PixelScale.of(target.processor)

    def contrast_branch(self, call: ContrastCall) -> Branch:
        """The same prompt with changed pictures.

        Raises:
            ValueError: there are pictures but no pixels, or pixels in an order that is not known.
        """
        pixels, active = call.pixels(), call.prompt.has_image
        if bool(active.any()) and not pixels:
            raise ValueError(
                "ritual changes pixel values, but generate was given none (image features made beforehand?); "
                "pass the processor's pixel_values"
            )
        change = PictureChange(names=read_names(self.changes), seed=self.seed, scale=call.prepared, drawn=[])
        config = call.model.config
        changed = {name: change.changed(name, value, call.inputs, config) for name, value in pixels.items()}
        return Branch(prompt=call.prompt.same(), images=changed, active=active if pixels else active & False)

    def combine_logits(self, positive: Tensor, negative: Tensor, step: int) -> Tensor:
        """The sum of the given picture's logits and, `strength` times, those of the changed one (`negative`)."""
        return cut_implausible(positive + self.strength * negative, positive, self.plausibility)
