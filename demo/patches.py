"""How a picture is cut into visual tokens by the model at hand."""

from dataclasses import dataclass

from PIL import Image

from vlm_guard.demo.answering import AnsweringModel
from vlm_guard.families.patch_grid import place_images
from vlm_guard.families.pictures import seen_part
from vlm_guard.method.visual_tokens import visual_mask


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureView:
    """What a model sees of a picture.

    Attributes:
        image: the part that reaches the model.
        grid: rows and columns of its visual tokens.
    """

    image: Image.Image
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return self.grid[0] * self.grid[1]


def view_of(model: AnsweringModel, token_ids: tuple[int, ...], image: Image.Image, prompt: str) -> PictureView:
    """The view of a picture, with the grid its processor made.

    Args:
        model: the model.
        token_ids: ids of its visual tokens.
        image: the picture.
        prompt: any prompt; processors take text and picture together.

    Raises:
        ValueError: the visual tokens form no single grid, as with tiles.
    """
    inputs = model.encode(image, prompt)
    placed = place_images(model.model, inputs, visual_mask(inputs["input_ids"], token_ids), "the heat-map")
    seen = seen_part(image, getattr(model.processor, "image_processor", None))
    return PictureView(image=seen, grid=placed[0].grid)
