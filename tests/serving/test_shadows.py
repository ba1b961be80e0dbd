"""What the second branch of a request reads."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from vlm_guard import builtin
from vlm_guard.methods.vcd import VCD
from vlm_guard.serving.vllm.scheduling.shadows import make_shadow

BOS, IMAGE, PATCHES = 1, 4, 64


@dataclass(frozen=True)
class Place:
    """Stands in for vLLM's PlaceholderRange."""

    offset: int
    length: int = PATCHES


@dataclass
class Element:
    """Stands in for vLLM's MultiModalFieldElem."""

    data: Any
    field: Any


class MultiModalBatchedField:
    """Named as vLLM's."""


@dataclass(frozen=True)
class Feature:
    """Stands in for vLLM's MultiModalFeatureSpec."""

    data: dict
    mm_position: Place
    identifier: str = "picture"
    mm_hash: str | None = None
    modality: str = field(default="image")


@pytest.fixture(scope="module")
def processor():
    return builtin()[1]


def prompt(processor, text, pictures=1):
    """Ids of a prompt with its placeholders expanded, and its pictures."""
    ids = [BOS, *processor.tokenizer("USER: ", add_special_tokens=False)["input_ids"]]
    features = []
    for number in range(pictures):
        pixels = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(number))
        data = {"pixel_values": Element(pixels, MultiModalBatchedField())}
        features.append(Feature(data, Place(len(ids)), f"picture {number}"))
        ids += [IMAGE] * PATCHES
    return [*ids, *processor.tokenizer(f"\n{text} ASSISTANT:", add_special_tokens=False)["input_ids"]], features


@pytest.mark.parametrize("name", ["m3id", "pai"])
def test_without_the_picture(served, processor, name):
    ids, features = prompt(processor, "What is it?", pictures=2)
    shadow = make_shadow(served(name).by_name[name], ids, features)
    assert shadow.ids == [token for token in ids if token != IMAGE] and shadow.features == []
    assert shadow.sign == "negative"


def test_with_noise_on_every_picture(served, processor):
    ids, features = prompt(processor, "What is it?", pictures=2)
    shadow = make_shadow(served("vcd:noise_step=700").by_name["vcd:noise_step=700"], ids, features)
    assert shadow.ids == ids and len(shadow.features) == 2
    for given, made in zip(features, shadow.features):
        pixels = given.data["pixel_values"].data
        expected = VCD(noise_step=700)._noised_image(pixels[None], None, 0)[0]
        assert torch.equal(made.data["pixel_values"].data, expected) and not torch.equal(expected, pixels)
        assert made.mm_position == given.mm_position
        assert made.identifier != given.identifier and made.mm_hash == made.identifier
    assert shadow.features[0].identifier != shadow.features[1].identifier
    other = make_shadow(served("vcd").by_name["vcd"], ids, features)
    assert other.features[0].identifier != shadow.features[0].identifier, "other settings are another picture"


def test_behind_another_instruction_the_picture_moves(served, processor):
    ids, features = prompt(processor, "What is it?")
    shadow = make_shadow(served("icd").by_name["icd"], ids, features)
    (moved,) = shadow.features
    assert len(shadow.ids) > len(ids) and moved.mm_position.offset != features[0].mm_position.offset
    start = moved.mm_position.offset
    assert shadow.ids[start : start + PATCHES] == [IMAGE] * PATCHES and shadow.ids.count(IMAGE) == PATCHES
    assert moved.identifier == features[0].identifier, "the picture is the same, and encoded once"


def test_a_leading_question_is_the_negative_branch(served, processor):
    ids, features = prompt(processor, "I think there is a dog in the image. Is there a dog in the image?")
    shadow = make_shadow(served("lqcd").by_name["lqcd"], ids, features)
    assert shadow.sign == "positive" and len(shadow.ids) < len(ids)


@pytest.mark.parametrize(
    ("name", "pictures"), [("lqcd", 1), ("m3id", 0), ("vcd", 0), ("softpag", 0), ("zerotuning", 1)]
)
def test_where_there_is_nothing_to_contrast(served, processor, name, pictures):
    ids, features = prompt(processor, "What is it?", pictures)
    assert make_shadow(served(name).by_name[name], ids, features) is None


def test_a_prompt_whose_branch_cannot_be_made_is_said(served, processor):
    with pytest.raises(ValueError, match="nothing is left of a prompt without its image"):
        make_shadow(served("m3id").by_name["m3id"], [IMAGE] * PATCHES, [])
    ids, _ = prompt(processor, "What is it?")
    with pytest.raises(ValueError, match="pixel values"):
        make_shadow(served("vcd").by_name["vcd"], ids, [])
