"""FLB: the growing share of the first token's logits, in generate and outside of it."""

import math

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.contrast import unguarded
from vlm_guard.methods.flb import FLB
from zoo import UNEQUAL_PROMPTS, Prompt

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=5, images=0, text_after=12, content=2)]
SETTINGS = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.0146), (10, 0.118), (50, 0.275)])
def test_the_share_grows_as_published(step, share):
    zeros, first = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, -1.0]])
    edited = FLB(plausibility=0.0).edit_logits(zeros, first, step)
    assert edited[0].tolist() == pytest.approx([share, 0.0, -share], abs=5e-4)


def test_the_cut_is_by_the_steps_own_logits():
    logits, first = torch.tensor([[3.0, 2.0, -1.0]]), torch.tensor([[0.0, 0.0, 90.0]])
    edited = FLB().edit_logits(logits, first, 50)
    assert edited[0, :2].tolist() == [3.0, 2.0] and edited[0, 2] < -1000
    assert FLB(plausibility=0.0).edit_logits(logits, first, 50).argmax() == 2


def by_hand(zoo, inputs, steps, method):
    """Greedy tokens and logits of the formula, with a whole pass per token."""
    ids, mask, found, first = inputs["input_ids"], inputs["attention_mask"], [], None
    has_image = (ids == zoo.image_token_id).any(-1, keepdim=True)
    for step in range(steps):
        with torch.no_grad():
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
            whole = zoo.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, pixel_values=inputs["pixel_values"]
            )
        logits = whole.logits[:, -1]
        first = logits if first is None else first
        mixed = logits + method.strength * (1 - math.exp(-method.rate * step)) * first
        least = logits.amax(-1, keepdim=True) + math.log(method.plausibility)
        mixed = torch.where(logits < least, logits - 1e4, mixed)
        found.append(torch.where(has_image, mixed, logits))
        allowed = found[-1].clone()
        allowed[:, zoo.model.generation_config.suppress_tokens] = float("-inf")
        ids = torch.cat((ids, allowed.argmax(-1, keepdim=True)), 1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return ids, found


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_equals_the_formula(zoo_model, use_cache):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    method = FLB(strength=2.0, rate=0.5)
    ids, expected = by_hand(zoo, inputs, 4, method)
    with wrap(zoo.model, None, method) as guard:
        out = guard.generate(**inputs, max_new_tokens=4, use_cache=use_cache, **SETTINGS)
    assert torch.equal(out.sequences, ids)
    for found, wanted in zip(out.logits, expected):
        assert torch.allclose(found, wanted, atol=2e-4)


def test_labels_and_loops_of_ones_own_give_what_generate_gives(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:2])
    length = inputs["input_ids"].shape[1]
    with wrap(zoo.model, None, FLB(strength=2.0, rate=0.5)) as guard, torch.no_grad():
        out = guard.generate(**inputs, max_new_tokens=3, **SETTINGS)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
        labels = out.sequences.clone()
        labels[:, :length] = -100
        whole = zoo.model(**inputs | {"input_ids": out.sequences, "attention_mask": mask}, labels=labels)
        for step in range(3):
            assert torch.allclose(whole.logits[:, length - 1 + step], out.logits[step], atol=2e-4)
        given = zoo.model(**inputs, use_cache=True)
        assert torch.allclose(given.logits[:, -1], out.logits[0], atol=2e-4)
        for step in range(1, 3):
            given = zoo.model(
                input_ids=out.sequences[:, length + step - 1 : length + step],
                attention_mask=mask[:, : length + step],
                past_key_values=given.past_key_values,
            )
            assert torch.allclose(given.logits[:, -1], out.logits[step], atol=2e-4)


def test_first_logits_that_were_not_kept_are_asked_for(zoo_model):
    """The answer of a row that is padded on the right begins before the last position."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:2], padding_side="right")
    with (
        wrap(zoo.model, None, "flb"),
        torch.no_grad(),
        pytest.raises(ValueError, match="flb needs the logits of the answer's first token"),
    ):
        zoo.model(**inputs, logits_to_keep=1)


def test_beams_of_a_prompt_share_its_first_logits(zoo_model):
    zoo = zoo_model("llava")
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    with wrap(zoo.model, None, FLB(strength=2.0, rate=0.5)) as guard:
        together = guard.generate(**zoo.make_inputs(PROMPTS), **settings)
        for row, prompt in enumerate(PROMPTS):
            alone = guard.generate(**zoo.make_inputs([prompt]), **settings)
            assert torch.equal(together[row, -4:], alone[0, -4:])


def test_it_works_without_a_guard_and_is_no_logits_processor(zoo_model):
    zoo = zoo_model("llava")
    inputs, method = zoo.make_inputs(PROMPTS[:1]), FLB(strength=2.0, rate=0.5)
    with wrap(zoo.model, None, method) as guard:
        expected = guard.generate(**inputs, max_new_tokens=3)
    callable_ = unguarded.contrast_generate(method, zoo.model, None, inputs)
    assert torch.equal(zoo.model.generate(**inputs, max_new_tokens=3, custom_generate=callable_), expected)
    with pytest.raises(ValueError, match="no second branch to follow"):
        unguarded.contrast_processor(method, zoo.model, None, inputs)


def test_one_contrast_at_a_time(zoo_model):
    with pytest.raises(ValueError, match="flb and vcd all contrast"):
        wrap(zoo_model("llava").model, None, "flb+vcd")
