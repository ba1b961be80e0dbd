from dataclasses import replace

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.bench.generate import random_model_options
from vlm_guard.bench.random_models import SHAPES, DecoderShape, named_shape, random_llava
from vlm_guard.bench.random_prompts import random_inputs, random_processor
from vlm_guard.method.registry import method_names

TINY = DecoderShape(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocab=1600, visual_tokens=16)


def test_shape_of_the_model_is_the_shape_asked_for():
    model = random_llava(TINY)
    attention = model.model.language_model.layers[1].self_attn
    assert attention.q_proj.weight.shape == (32, 32) and attention.k_proj.weight.shape == (16, 32)
    decoder = sum(p.numel() for p in model.model.language_model.parameters()) + model.lm_head.weight.numel()
    assert decoder == TINY.decoder_parameters
    assert not model.training


def test_named_shapes_have_the_size_of_their_name():
    sizes = {name: shape.decoder_parameters / 1e9 for name, shape in SHAPES.items()}
    assert 0.25 < sizes["llava-0.3b"] < 0.35
    assert 6.5 < sizes["llava-1.5-7b"] < 7.0
    assert all(7.0 < sizes[name] < 8.5 for name in sizes if name.endswith("-shape"))
    assert SHAPES["llava-1.5-7b"].cache_elements_per_token == 2 * 32 * 4096


def test_batch_generates_to_the_end():
    model = random_llava(TINY)
    processor = random_processor(model)
    inputs = random_inputs(model, processor, batch=2, prompt_tokens=40)
    length = inputs["input_ids"].shape[1]
    assert 40 + 16 <= length <= 44 + 16
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [16, 16]
    assert not torch.equal(*inputs["pixel_values"])
    output = model.generate(**inputs, max_new_tokens=7)
    assert output.shape == (2, length + 7)
    assert not (output[:, length:] == model.config.image_token_id).any()
    assert "There is a dog in the image" in processor.decode(inputs["input_ids"][0])


@pytest.mark.parametrize("method", [name for name in method_names() if name != "none"])
def test_every_method_runs_on_a_random_model(method):
    """So that its cost can be measured; the model is no special case of any method."""
    model = random_llava(replace(TINY, layers=16, visual_tokens=64))
    processor = random_processor(model)
    inputs = random_inputs(model, processor, batch=2)
    facts = random_model_options(16, TINY.hidden)
    options = {name: value for name, value in facts.items() if name.startswith(f"{method}.")}
    if method == "uncertainty":
        options["uncertainty.iterations"] = 3
    plain = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
    with wrap(model, processor, method, **options):
        found = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
    assert torch.isfinite(torch.stack(found.logits)).all() or method in ("lqcd", "m3id", "vcd", "icd", "pai", "softpag")
    assert not torch.equal(torch.stack(found.logits), torch.stack(plain.logits)), "the method did something"


def test_same_seed_same_weights_and_every_weight_is_set():
    first, again, other = random_llava(TINY), random_llava(TINY), random_llava(TINY, seed=1)
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.abs().max() < 1.5, name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_half_precision_keeps_rotary_frequencies_exact():
    half, full = random_llava(TINY, dtype=torch.bfloat16), random_llava(TINY)
    assert half.dtype == torch.bfloat16
    rotary = half.model.language_model.rotary_emb.inv_freq
    assert torch.equal(rotary.float(), full.model.language_model.rotary_emb.inv_freq)
    output = half.generate(**random_inputs(half, random_processor(half)), max_new_tokens=3)
    assert output.shape[0] == 1


def test_initialisation_of_other_models_is_back_afterwards():
    random_llava(TINY)
    layer = torch.nn.Linear(64, 64)
    assert 0.01 < layer.weight.std() < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_tokens": 500}, "square number"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"head_dim": 7}, "even"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"vocab": 3}, "vocab must be larger"),
    ],
)
def test_impossible_shape_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_unknown_name_and_bad_inputs_say_what_is_allowed():
    with pytest.raises(ValueError, match=r"did you mean 'llava-0\.3b'"):
        named_shape("llava-0.3")
    model = random_llava(TINY)
    processor = random_processor(model)
    for bad in ({"batch": 0}, {"prompt_tokens": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            random_inputs(model, processor, **bad)
    with pytest.raises(ValueError, match="a model with 100 cannot use it"):
        random_processor(random_llava(replace(TINY, vocab=100)))
