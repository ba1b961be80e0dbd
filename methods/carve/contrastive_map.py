"""From attention under two prompts to the region of a picture that the question is about (CARVE, arXiv 2509.06461)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlm_guard.method import PlacedImage, magnify_regions, stretch
from vlm_guard.methods.carve.connected_regions import label_regions

# Keeps the quotient finite; the released code's value (the paper only asks for more than 0).
LAMBDA = 1e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class RefinedImage:
    """What was found in one picture.

    Attributes:
        image: its row, number, grid and places in the prompt.
        contrast: [rows, columns] contrast summed over layers and weighted steps.
        fused: [height, width] the same, enlarged to the picture.
        kept: [height, width] bool, the regions that are shown.
        box: their bounding box (left, top, right, bottom) in pixels.
        original: the picture.
        refined: the box, magnified, black outside the regions or not.
    """

    image: PlacedImage
    contrast: NDArray[np.float64]
    fused: NDArray[np.float64]
    kept: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    original: Image.Image
    refined: Image.Image


def contrast_steps(question: Tensor, general: Tensor) -> Tensor:
    """[J] float64: the contrast of J visual tokens, summed over layers and over steps that weigh 1, 2, 3, ...

    Args:
        question: [T, L, J] attention of T steps in L layers under the question.
        general: [T', L, J] the same under the general instruction; the shorter answer sets the number of steps.
    """
    steps = min(question.shape[0], general.shape[0])
    ratio = question[:steps].double() / (general[:steps].double() + LAMBDA)
    weight = ratio.new_tensor(range(1, steps + 1))
    return (ratio.sum(1) * weight[:, None]).sum(0)


def choose_regions(fused: NDArray[np.float64], share: float, regions: int) -> NDArray[np.bool_]:
    """[H, W] bool: of the regions of the highest `share` of `fused` [H, W], those of the largest sum.

    Kept are `regions` of them, or the `share` of all regions if that is more.
    """
    mask = fused >= np.percentile(fused, (1 - share) * 100)
    labels, count = label_regions(mask)
    sums = np.bincount(labels.ravel(), weights=fused.ravel(), minlength=count + 1)[1:]
    best = np.argsort(-sums, kind="stable")[: max(regions, int(count * share))] + 1
    return np.isin(labels, best)


def refine_picture(
    image: PlacedImage,
    picture: Image.Image,
    contrast: NDArray[np.float64],
    share: float,
    regions: int,
    *,
    blacken: bool = True,
) -> RefinedImage:
    """The picture reduced to what stands out in `contrast` [rows, columns].

    Args:
        image: where it is in the prompt.
        picture: as the model sees it.
        contrast: of its visual tokens.
        share: of the area that may be kept.
        regions: how many are kept at least.
        blacken: whether what lies between them becomes black.
    """
    fused = stretch(contrast, picture.size)
    kept = choose_regions(fused, share, regions)
    refined, box = magnify_regions(picture, kept, blacken=blacken)
    return RefinedImage(
        image=image, contrast=contrast, fused=fused, kept=kept, box=box, original=picture, refined=refined
    )
