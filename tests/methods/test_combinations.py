"""Attention, head, hidden-state, vision and input methods together with contrast decoding, and in half precision."""

import pytest
import torch

from vlm_guard import wrap
from zoo import UNEQUAL_PROMPTS, assert_pristine

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
OPTIONS = {
    "zerotuning": {"factor": 0.3},
    "act": {"threshold": 0.05, "layers": "all"},
    "paint": {"layers": "all", "local_gain": 2.0},
    "gift": {"content_words": "all", "saliency_layer": "0", "layers": "1-"},
    "vhr": {"layers": "all"},
    "spin": {"keep": 0.5},
    "hgai": {"layers": "all"},
    "vaf": {"layers": "all"},
    "iri": {"attention_rates": "0.9,0.2,0.5", "mlp_rates": "0.1,0.8,0.3", "attention_strength": 1.5},
    "uncertainty": {
        "pixel_std": "0.5,0.25,0.125",
        "iterations": 2,
        "threshold": 0.3,
        "layers": "0",
        "probe_layers": "0-1",
    },
}
SETTINGS = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def of(*methods):
    return {f"{name}.{option}": value for name in methods for option, value in OPTIONS[name].items()}


def generate(model, inputs, methods, options, **extra):
    with wrap(model, None, methods, **options) as guard:
        return guard.generate(**inputs, **SETTINGS, **extra)


def close(first, second):
    return all(torch.allclose(one, other, atol=1e-4, rtol=1e-4) for one, other in zip(first.logits, second.logits))


@pytest.mark.parametrize("method", OPTIONS)
def test_half_precision_is_finite(zoo_model, method):
    zoo = zoo_model("llava", torch.bfloat16)
    inputs = zoo.make_inputs(PROMPTS)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    found = generate(zoo.model, inputs, method, of(method))
    assert all(torch.isfinite(step[:, 10:]).all() for step in found.logits)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("method", OPTIONS)
def test_beside_a_contrast_of_no_strength_it_is_itself(zoo_model, method):
    """The text-only branch takes no part in the logits and must not take part in the method either."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    alone = generate(zoo.model, inputs, method, of(method))
    contrasted = generate(
        zoo.model, inputs, f"{method}+vcd", of(method) | {"vcd.strength": 1e-9, "vcd.plausibility": 0.0}
    )
    assert torch.equal(alone.sequences, contrasted.sequences)
    assert close(alone, contrasted)


@pytest.mark.parametrize("method", ["zerotuning", "act", "paint", "gift", "vhr", "iri"])
def test_the_negative_branch_is_the_bare_model(zoo_model, method):
    """With M3ID the negative branch has no image: (1 + a) guarded - a text-only, both from passes of their own."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS[:1])
    alone = generate(zoo.model, inputs, method, of(method))
    keep = inputs["input_ids"] != zoo.image_token_id
    text = {"input_ids": inputs["input_ids"][keep][None], "attention_mask": inputs["attention_mask"][keep][None]}
    combined = generate(zoo.model, inputs, f"{method}+m3id", of(method) | {"m3id.plausibility": 0.0})
    plain_text = zoo.model.generate(**text, **SETTINGS)
    positive, negative = alone.logits[0].log_softmax(-1), plain_text.logits[0].log_softmax(-1)
    difference = combined.logits[0].log_softmax(-1) - positive
    # What was added to the positive log-probabilities is a multiple of (positive - negative), up to a constant.
    direction = positive - negative
    centred = [item[:, 10:] - item[:, 10:].mean(-1, keepdim=True) for item in (difference, direction)]
    scale = (centred[0] * centred[1]).sum() / centred[1].square().sum().clamp_min(1e-20)
    assert torch.allclose(centred[0], scale * centred[1], atol=1e-4)


@pytest.mark.parametrize(
    "methods",
    ["zerotuning+iri", "paint+gift", "act+paint", "gift+vhr", "vhr+iri", "paint+uncertainty", "spin+vhr", "hgai+vaf"],
)
def test_two_methods_decode_as_without_a_cache(zoo_model, methods):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    options = of(*methods.split("+"))
    cached = generate(zoo.model, inputs, methods, options)
    recomputed = generate(zoo.model, inputs, methods, options, use_cache=False)
    assert torch.equal(cached.sequences, recomputed.sequences)
    assert close(cached, recomputed)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("method", OPTIONS)
def test_sampling_repeats_with_a_seed(zoo_model, method):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    answers = []
    for _ in range(2):
        torch.manual_seed(7)
        with wrap(zoo.model, None, method, **of(method)) as guard:
            answers.append(guard.generate(**inputs, max_new_tokens=5, do_sample=True))
    assert torch.equal(*answers)


@pytest.mark.parametrize("method", OPTIONS)
def test_beams_and_several_sequences(zoo_model, method):
    """Beam search of a batch gives what it gives each prompt alone; a static cache decodes as a dynamic one."""
    zoo = zoo_model("llava")
    beams = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    with wrap(zoo.model, None, method, **of(method)) as guard:
        batch = zoo.make_inputs(PROMPTS)
        together = guard.generate(**batch, **beams)
        for row, prompt in enumerate(PROMPTS):
            alone = guard.generate(**zoo.make_inputs([prompt]), **beams)
            assert torch.equal(together[2 * row : 2 * row + 2, -4:], alone[:, -4:])
        dynamic = guard.generate(**batch, max_new_tokens=4, do_sample=False)
        static = guard.generate(**batch, max_new_tokens=4, do_sample=False, cache_implementation="static")
        assert torch.equal(dynamic, static)
    assert_pristine(zoo.model)
