"""Other pictures in a prompt that is already tokens: its visual tokens, their number, and the model's image inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_guard.method import (
    INSERTED,
    TOKEN_TYPES,
    BranchPrompt,
    GivenPrompt,
    PlacedImage,
    image_inputs,
    image_markers,
    visual_mask,
)


def splice_pictures(
    prompt: GivenPrompt,
    inputs: Mapping[str, Any],
    placed: Sequence[PlacedImage],
    originals: Sequence[Image.Image],
    pictures: Sequence[Image.Image],
    model: Any,
    processor: Any,
    *,
    keep: bool,
) -> dict[str, Any]:
    """Inputs of `generate` with new pictures in place of the old ones, or behind each of them.

    Args:
        prompt: the prompt as it was given.
        inputs: the inputs as they were given.
        placed: its images.
        originals: their pictures, in order.
        pictures: the new pictures, one for each image.
        model: of which the inputs are.
        processor: makes image inputs and the tokens that stand for a picture.
        keep: whether the old pictures stay, each followed by its new one.
    """
    old = image_inputs(inputs)
    shown = [item for pair in zip(originals, pictures) for item in (pair if keep else pair[1:])]
    processed = processor.image_processor(images=shown, return_tensors="pt")
    markers = image_markers(model, processor)
    runs = [_run(processor, picture, prompt.visual_token_ids, processed) for picture in pictures]

    def edit_row(row: int, ids: list[int], places: list[int]) -> tuple[list[int], list[int]]:
        for image in sorted((item for item in placed if item.row == row), key=lambda item: -int(item.places[0])):
            first, last = places.index(int(image.places[0])), places.index(int(image.places[-1])) + 1
            own = runs[image.index]
            run = ids[first:last] if own is None else own
            if not keep:
                kept = places[first:last] if run == ids[first:last] else [INSERTED] * len(run)
                ids, places = ids[:first] + run + ids[last:], places[:first] + kept + places[last:]
                continue
            opening, closing = _marked(ids, first, last, markers)
            block = ids[opening:first] + run + ids[last:closing]
            ids = ids[:closing] + block + ids[closing:]
            places = places[:closing] + [INSERTED] * len(block) + places[closing:]
        return ids, places

    rows = []
    for row, (ids, real) in enumerate(zip(prompt.input_ids.tolist(), prompt.attention_mask.bool().tolist())):
        positions = [place for place, is_real in enumerate(real) if is_real]
        rows.append(edit_row(row, [ids[place] for place in positions], positions))
    edited = BranchPrompt.from_rows(rows, [True] * len(rows), prompt.pad_id, prompt.input_ids.device)

    rebuilt = {name: value for name, value in inputs.items() if name not in old}
    rebuilt |= {"input_ids": edited.input_ids, "attention_mask": edited.attention_mask}
    for name in TOKEN_TYPES:
        if isinstance(inputs.get(name), Tensor):
            rebuilt[name] = _token_types(inputs[name], prompt, edited)
    for name, value in processed.items():
        if name in old or name == "pixel_values":
            like = old.get(name, old.get("pixel_values"))
            if like is None:
                raise ValueError(f"the inputs have no {name} that a new picture could take the place of")
            floating = isinstance(value, Tensor) and value.is_floating_point()
            rebuilt[name] = value.to(device=like.device, dtype=like.dtype if floating else value.dtype)
    return rebuilt


def _run(
    processor: Any, picture: Image.Image, visual_token_ids: tuple[int, ...], processed: Mapping[str, Any]
) -> list[int] | None:
    """The tokens from the first visual one of a picture to the last; None where every picture has the same."""
    if not any(name in processed for name in ("image_grid_thw", "image_sizes")):
        return None
    placeholder = getattr(processor, "boi_token", None) or processor.image_token
    ids = processor(text=[placeholder], images=[picture], return_tensors="pt")["input_ids"][0]
    visual = visual_mask(ids[None], visual_token_ids)[0].nonzero().flatten()
    return ids[int(visual[0]) : int(visual[-1]) + 1].tolist()


def _marked(ids: list[int], first: int, last: int, markers: frozenset[int]) -> tuple[int, int]:
    """The stretch of an image with the markers on both sides of it."""
    while first and ids[first - 1] in markers:
        first -= 1
    while last < len(ids) and ids[last] in markers:
        last += 1
    return first, last


def _token_types(types: Tensor, prompt: GivenPrompt, edited: BranchPrompt) -> Tensor:
    """[B, P'] types of the edited rows: a visual token has the type that visual tokens had."""
    visual = visual_mask(prompt.input_ids, prompt.visual_token_ids)
    of_visual = int(types[visual][0]) if bool(visual.any()) else 0
    new = visual_mask(edited.input_ids, prompt.visual_token_ids)
    return torch.where(new, of_visual, edited.follow(types))
