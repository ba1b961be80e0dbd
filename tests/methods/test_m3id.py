"""M3ID: the growing strength, and the prompt without its picture."""

import math

import pytest
import torch

from vlm_guard.method.branch_prompt import GivenPrompt
from vlm_guard.method.contrasting import contrast_logits
from vlm_guard.method.gate import Gate
from vlm_guard.methods.m3id import M3ID
from zoo.prompts import BOS, IMAGE, IMAGE_END, IMAGE_START, PAD


@pytest.mark.parametrize("step", [0, 1, 10, 50, 200])
def test_strength_is_the_published_weight(step):
    remembered = math.exp(-0.02 * step)
    assert M3ID().contrast_strength(step) == pytest.approx((1 - remembered) / remembered)


def test_strength_stops_growing():
    assert M3ID(max_strength=5.0).contrast_strength(10_000) == 5.0
    assert M3ID(forgetting=1.0).contrast_strength(10**6) == 100.0


def test_combination_equals_the_formula_in_log_probabilities():
    torch.manual_seed(0)
    with_image, text = torch.randn(2, 20), torch.randn(2, 20)
    g = math.exp(-0.02 * 30)
    logs = with_image.log_softmax(-1), text.log_softmax(-1)
    expected = (logs[0] + (1 - g) / g * (logs[0] - logs[1])).softmax(-1)
    assert torch.allclose(M3ID(plausibility=0.0).combine_logits(with_image, text, 30).softmax(-1), expected, atol=1e-6)
    assert torch.equal(M3ID().combine_logits(with_image, text, 0), contrast_logits(with_image, text, 0.0, 0.1)), (
        "the first token is not contrasted, only cut"
    )


def test_pictures_and_their_markers_are_cut_out_of_every_row():
    rows = torch.tensor(
        [
            [PAD, PAD, BOS, 20, IMAGE_START, IMAGE, IMAGE, IMAGE_END, 21, 22],
            [BOS, IMAGE_START, IMAGE, IMAGE_END, 30, IMAGE_START, IMAGE, IMAGE_END, 31, 32],
            [PAD, PAD, PAD, BOS, 40, 41, 42, 43, 44, 45],
        ]
    )
    mask = torch.tensor([[0, 0] + [1] * 8, [1] * 10, [0, 0, 0] + [1] * 7])
    given = GivenPrompt(input_ids=rows, attention_mask=mask, visual_token_ids=(IMAGE,), pad_id=PAD)
    text = given.without_images({IMAGE_START, IMAGE_END})
    assert [row[real.bool()].tolist() for row, real in zip(text.input_ids, text.attention_mask)] == [
        [BOS, 20, 21, 22],
        [BOS, 30, 31, 32],
        [BOS, 40, 41, 42, 43, 44, 45],
    ]
    assert text.length == 7 and text.changed.tolist() == [True, True, False]
    types = torch.arange(30).view(3, 10)
    assert text.follow(types)[0].tolist() == [0, 0, 0, 2, 3, 8, 9]


def test_a_prompt_of_nothing_but_an_image_is_refused():
    ids = torch.tensor([[IMAGE, IMAGE]])
    given = GivenPrompt(input_ids=ids, attention_mask=torch.ones_like(ids), visual_token_ids=(IMAGE,), pad_id=PAD)
    with pytest.raises(ValueError, match="nothing is left"):
        given.without_images(())


def test_the_papers_variant_gates_counts_from_one_and_cuts_nothing():
    paper = M3ID(variant="published")
    assert (paper.gate, paper.start, paper.plausibility) == ("max_p<0.3", 1, 0.0)
    assert paper.contrast_strength(0) == pytest.approx(math.exp(0.02) - 1)
    sure, unsure = torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    positive, negative = torch.stack((sure, unsure)), torch.zeros(2, 6)
    assert sure.softmax(-1).max() > 0.3 > unsure.softmax(-1).max()
    assert Gate.read(paper.gate).is_open(positive).tolist() == [False, True]
    strength = math.exp(0.02 * 10) - 1
    assert torch.allclose(paper.combine_logits(positive, negative, 9)[1], unsure + strength * unsure)
    assert M3ID(variant="published", gate="max_p<0.9").gate == "max_p<0.9", "an option that is given is never replaced"


def test_the_default_is_the_re_implementations():
    torch.manual_seed(1)
    positive, negative = torch.randn(3, 9), torch.randn(3, 9)
    expected = contrast_logits(positive, negative, math.expm1(0.02 * 7), 0.1)
    assert torch.equal(M3ID().combine_logits(positive, negative, 7), expected)
