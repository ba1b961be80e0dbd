"""Caches that hold a part of a prompt: each method is right with it, or refuses it by name."""

import warnings

import contrast_oracle as oracle
import pytest
import torch
from method_cases import options, supports
from pass_cases import ATTENTION, PROMPT, RECORD, guarded, run
from transformers import DynamicCache

from vlm_guard import wrap
from zoo import Prompt

torch.set_num_threads(1)

EDITING = [*ATTENTION, "iri", "uncertainty"]


@pytest.fixture
def llava(zoo_model):
    return zoo_model("llava")


# -- caches that hold part of a prompt -------------------------------------------------------------------------------


def split_at(inputs, length):
    """The first `length` tokens as text, and the mask of the whole."""
    return {"input_ids": inputs["input_ids"][:, :length], "attention_mask": inputs["attention_mask"][:, :length]}


@pytest.mark.parametrize("method", EDITING)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_text_prefix_read_first_is_right_or_refused(zoo_model, method, family):
    if not supports(method, family):
        pytest.skip(f"{method} refuses {family}")
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(PROMPT)
    with guarded(zoo, method), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = run(zoo.model, inputs)
        cache = zoo.model(**split_at(inputs, 2), use_cache=True, past_key_values=DynamicCache()).past_key_values
        if method in ("zerotuning", "vhr"):
            with pytest.raises(ValueError, match=f"{method} edits all rows"):
                run(zoo.model, inputs, past_key_values=cache)
            return
        found = run(zoo.model, inputs, past_key_values=cache)
    assert oracle.close(found[1], expected[1], 4.0)


def cropped_after(zoo, method, first, second, length):
    """Generate for `first`, cut its cache to `length` tokens, and go on with `second`."""
    with guarded(zoo, method):
        expected = run(zoo.model, second)
        cache = DynamicCache()
        zoo.model.generate(**first, **RECORD, past_key_values=cache)
        cache.crop(length - cache.get_seq_length())
        return expected, run(zoo.model, second, past_key_values=cache)


@pytest.mark.parametrize("method", EDITING)
def test_another_picture_behind_the_same_text(llava, method):
    first = llava.make_inputs([Prompt(text_before=4, images=1, text_after=6, content=0)])
    second = llava.make_inputs([Prompt(text_before=4, images=1, text_after=6, content=3)])
    second["input_ids"][:, :4] = first["input_ids"][:, :4]
    if method == "vhr":
        with pytest.raises(ValueError, match="vhr has to see the whole prompt"):
            cropped_after(llava, method, first, second, 4)
        return
    expected, found = cropped_after(llava, method, first, second, 4)
    assert oracle.close(found[1], expected[1], 4.0)


@pytest.mark.parametrize("method", EDITING)
def test_another_question_about_a_cached_picture(llava, method):
    first = llava.make_inputs([Prompt(text_before=4, images=1, text_after=6, content=0)])
    second = {name: value.clone() for name, value in first.items() if name != "pixel_values"}
    second["input_ids"][:, -3:] += 1
    length = first["input_ids"].shape[1] - 3
    with guarded(llava, method):
        expected = run(llava.model, {**second, "pixel_values": first["pixel_values"]})
        cache = DynamicCache()
        llava.model.generate(**first, **RECORD, past_key_values=cache)
        cache.crop(length - cache.get_seq_length())
        if method in ("act", "vhr", "gift"):
            with pytest.raises(ValueError, match=f"{method} has to see the whole prompt"):
                run(llava.model, second, past_key_values=cache)
            return
        found = run(llava.model, second, past_key_values=cache)
    assert oracle.close(found[1], expected[1], 4.0)


def test_paint_goes_on_with_a_picture_in_the_cache(llava):
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, "paint") as guard:
        cache = DynamicCache()
        first = run(llava.model, inputs, past_key_values=cache)[0]
        gain = guard.state.memory("paint", -1).gain.clone()
        more = torch.cat((first, first[:, :3]), 1)
        turn = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        found = run(llava.model, turn, past_key_values=cache)
        again = guard.state.memory("paint", -1).gain
        second = llava.make_inputs([Prompt(text_before=2, images=1, content=3)])
        ids = torch.cat((found[0], second["input_ids"]), 1)
        turn = {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        run(llava.model, turn, past_key_values=cache)
        both = guard.state.memory("paint", -1).gain
    length = inputs["input_ids"].shape[1]
    assert gain[..., :length].any()
    assert torch.equal(again[..., :length], gain[..., :length])
    assert not again[..., length:].any()
    assert torch.equal(both[..., : again.shape[-1]], again)
    assert both[..., ids.shape[1] - second["input_ids"].shape[1] : ids.shape[1]].any(), "the new picture is marked"


# -- what generate is given ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*ATTENTION, "vcd", "m3id"])
def test_a_mask_that_is_left_out_is_inferred_as_transformers_does(llava, method):
    inputs = llava.make_inputs([*PROMPT, Prompt(text_before=8, images=1, text_after=9, content=2)])
    assert not inputs["attention_mask"].bool().all(), "the batch is padded"
    left_out = {name: value for name, value in inputs.items() if name != "attention_mask"}
    given = {**options(method)} | ({"guidance": 1.0} if method == "pai" else {})
    with wrap(llava.model, None, method, **given):
        expected = run(llava.model, inputs)
        found = run(llava.model, left_out)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("method", ["var", "pai", "vcd"])
def test_the_prompt_by_its_other_name_and_by_position(llava, method):
    inputs = llava.make_inputs(PROMPT)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with wrap(llava.model, None, method, **options(method)):
        expected = run(llava.model, inputs)[0]
        named = run(llava.model, {**rest, "inputs": inputs["input_ids"]})[0]
        placed = llava.model.generate(inputs["input_ids"], **rest, **RECORD).sequences
    assert torch.equal(named, expected)
    assert torch.equal(placed, expected)


def test_classifier_free_guidance_works_beside_attention_and_is_refused_beside_a_contrast(llava):
    inputs = llava.make_inputs(PROMPT)
    with guarded(llava, "var"):
        one = run(llava.model, inputs, guidance_scale=1.5)
        assert torch.equal(run(llava.model, inputs, guidance_scale=1.5)[1], one[1])
        assert oracle.close(one[1][:1], run(llava.model, inputs)[1][:1])
    with wrap(llava.model, None, "pai") as guard, pytest.raises(ValueError, match=r"pai.*guidance_scale"):
        guard.generate(**inputs, guidance_scale=1.5, max_new_tokens=2)
