"""RITUAL: the random changes, pictures taken out of pixel inputs and put back, and the sum of logits."""

import math
from types import SimpleNamespace

import pytest
import torch
from method_cases import WordProcessor
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlm_guard import wrap
from vlm_guard.methods.ritual.changed_pictures import PictureChange, PixelScale
from vlm_guard.methods.ritual.method import RITUAL
from vlm_guard.methods.ritual.random_change import (
    CHANGES,
    blend,
    blurred,
    draw_change,
    luma,
    read_names,
    rotated,
    turn_hue,
)
from zoo import UNEQUAL_PROMPTS, Prompt

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=5, images=0, text_after=12, content=2)]


def picture(width=48, height=32):
    values = torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))
    return Image.fromarray((values * 255).to(torch.uint8).permute(1, 2, 0).numpy())


def of(processor, *names, seed=0):
    return PictureChange(
        names=names, seed=seed, scale=PixelScale.of(SimpleNamespace(image_processor=processor)), drawn=[]
    )


def test_the_sum_and_its_cut_by_hand():
    given, changed = torch.tensor([[2.0, 1.0, 0.0, -4.0]]), torch.tensor([[0.0, 1.0, 0.0, 9.0]])
    mixed = RITUAL().combine_logits(given, changed, 3)
    assert mixed[0, :3].tolist() == [2.0, 4.0, 0.0], "l + 3 l_T"
    assert mixed[0, 3] < -1000, "less than a tenth as probable as the best under the given picture"


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_the_size_and_the_range_and_repeats_with_its_seed(name):
    values = torch.rand(3, 20, 14)
    found, apply = draw_change((name,), 5)
    once, again = apply(values), draw_change((name,), 5)[1](values)
    assert found == name and once.shape == values.shape and torch.equal(once, again)
    assert float(once.min()) >= -1e-6 and float(once.max()) <= 1 + 1e-6
    assert not torch.equal(once, values)


def test_colours_by_hand():
    """Pure red turned by a third of the circle is green; grey has no hue; saturation 0 is the luma."""
    red, grey = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1), torch.full((3, 1, 1), 0.4)
    assert turn_hue(red, 1 / 3).flatten().tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)
    assert turn_hue(red, -1 / 3).flatten().tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-5)
    assert turn_hue(grey, 0.3).flatten().tolist() == pytest.approx([0.4] * 3, abs=1e-5)
    assert blend(red, luma(red), 0.0).flatten().tolist() == pytest.approx([0.299] * 3, abs=1e-4)
    mixed = torch.rand(3, 5, 5)
    assert torch.allclose(turn_hue(mixed, 1.0), mixed, atol=1e-5), "a whole turn"
    assert torch.allclose(turn_hue(turn_hue(mixed, 0.2), -0.2), mixed, atol=1e-5)


def test_a_quarter_turn_is_exact_and_corners_become_black():
    square = torch.rand(3, 9, 9)
    assert torch.allclose(rotated(square, 90), square.rot90(1, (-2, -1)))
    turned = rotated(torch.ones(3, 20, 20), 45)
    assert not turned[:, 0, 0].any() and turned[:, 10, 10].all()


def test_a_blur_keeps_what_is_even_and_spreads_a_point_like_a_bell():
    assert torch.allclose(blurred(torch.full((3, 16, 16), 0.3), 1.7), torch.full((3, 16, 16), 0.3))
    point = torch.zeros(1, 31, 31)
    point[0, 15, 15] = 1
    spread = blurred(point, 1.5)
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float(spread[0, 15, 17] / spread[0, 15, 15]) == pytest.approx(math.exp(-(2**2) / (2 * 1.5**2)), rel=1e-4)
    assert not spread[0, 15, 22:].any(), "13 pixels wide"


def test_every_change_is_drawn_about_equally_often():
    names = [draw_change(tuple(CHANGES), seed)[0] for seed in range(600)]
    assert all(70 <= names.count(name) <= 130 for name in CHANGES)


def test_crops_and_amounts_stay_in_the_published_ranges():
    even = torch.linspace(0, 1, 64).expand(3, 64, 64)
    for seed in range(40):
        shown = draw_change(("crop",), seed)[1](even)
        share = float(shown[0, 0, -1] - shown[0, 0, 0])
        assert 0.15 <= share <= 1.0, "the widest side of 8 % of the area at 3/4 is a quarter of the picture"
    bright = torch.full((3, 4, 4), 0.25)
    assert all(0 <= float(draw_change(("colour",), seed)[1](bright).max()) <= 1 for seed in range(20))


def test_names_are_read_or_refused():
    assert read_names("all") == tuple(CHANGES) and read_names("rotation, blur") == ("rotation", "blur")
    for bad in ("twist", "", "rotation,twist"):
        with pytest.raises(ValueError, match="allowed: all, horizontal flip"):
            read_names(bad)


@pytest.mark.parametrize(("name", "flip"), [("horizontal flip", 0), ("vertical flip", 1)])
def test_a_flip_in_packed_patches_is_the_processors_own_of_the_flipped_picture(name, flip):
    """The picture is taken out of patches in groups of four, two frames each, and put back."""
    processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, do_resize=False)
    given = [picture(), picture(32, 24)]
    flipped = [item.transpose(Image.Transpose(flip)) for item in given]
    inputs, expected = (processor(images=images, return_tensors="pt") for images in (given, flipped))
    config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=4, spatial_merge_size=2))
    found = of(processor, name).changed("pixel_values", inputs["pixel_values"], inputs, config)
    assert torch.allclose(found, expected["pixel_values"], atol=1e-5)
    assert not torch.allclose(found, inputs["pixel_values"], atol=0.1)


def test_normalised_pixels_are_changed_as_values_from_0_to_1():
    processor = CLIPImageProcessorPil(size={"height": 24, "width": 24}, crop_size={"height": 24, "width": 24})
    inputs = processor(images=[picture()], return_tensors="pt")
    pixels = inputs["pixel_values"]
    found = of(processor, "colour").changed("pixel_values", pixels, inputs, None)
    mean, std = (torch.tensor(item).view(3, 1, 1) for item in (processor.image_mean, processor.image_std))
    values = found[0] * std + mean
    assert float(values.min()) >= -1e-5 and float(values.max()) <= 1 + 1e-5
    blurred = of(processor, "blur").changed("pixel_values", pixels, inputs, None)
    assert torch.allclose((blurred - pixels).mean(), torch.zeros(()), atol=0.05)


def test_padding_and_empty_tiles_stay_and_tiles_share_a_change():
    pixels = torch.zeros(2, 3, 3, 8, 8)
    pixels[0, :2] = torch.rand(2, 3, 8, 8)
    pixels[1, 0, :, :6, :4] = torch.rand(3, 6, 4)
    mask = torch.zeros(2, 3, 8, 8)
    mask[0, :2] = 1
    mask[1, 0, :6, :4] = 1
    turn = of(SimpleNamespace(), "horizontal flip")
    found = turn.changed("pixel_values", pixels, {"pixel_attention_mask": mask}, None)
    assert torch.allclose(found[0, :2], pixels[0, :2].flip(-1), atol=1e-6)
    assert torch.equal(found[0, 2], pixels[0, 2]) and turn.drawn == ["horizontal flip"] * 2
    assert torch.allclose(found[1, 0, :, :6, :4], pixels[1, 0, :, :6, :4].flip(-1), atol=1e-6)
    assert not found[1, 0, :, 6:].any() and not found[1, 0, :, :, 4:].any()


def test_generation_is_the_sum_of_two_plain_readings(zoo_model):
    """The first step against two forward passes, one with pictures changed by hand."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    processor, method = WordProcessor(), RITUAL(changes="horizontal flip", plausibility=0.0)
    with wrap(zoo.model, processor, method) as guard:
        out = guard.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True).logits[0]
    # Pixels of the tests lie outside of what pictures can have, which a picture cannot.
    seen = ((inputs["pixel_values"] * 0.25 + 0.5).clamp(0, 1) - 0.5) / 0.25
    with torch.no_grad():
        plain = zoo.model(**inputs).logits[:, -1]
        other = zoo.model(**inputs | {"pixel_values": seen.flip(-1)}).logits[:, -1]
    assert torch.allclose(out[:2], (plain + 3 * other)[:2], atol=1e-3)
    assert torch.allclose(out[2], plain[2], atol=1e-5), "a row without a picture is left alone"


def test_what_it_needs_is_said(zoo_model):
    zoo = zoo_model("llava")
    with pytest.raises(ValueError, match="ritual needs the model's processor"):
        wrap(zoo.model, None, "ritual")
    with pytest.raises(ValueError, match="processor's image_processor, which SimpleNamespace has none of"):
        wrap(zoo.model, SimpleNamespace(), "ritual")
    fuyu = zoo_model("fuyu")
    with (
        wrap(fuyu.model, WordProcessor(), "ritual") as guard,
        pytest.raises(ValueError, match="ritual changes whole pictures, and those of fuyu come in as patches"),
    ):
        guard.generate(**fuyu.make_inputs([Prompt()]), max_new_tokens=1)
