"""Uncertainty masking by hand: map, mask, the attack's radius in pixels, and what the tower computes then."""

from types import SimpleNamespace

import pytest
import torch

from vlm_guard import builtin, wrap
from vlm_guard.families.vision_tower import describe_vision_tower
from vlm_guard.method import FindingsCall
from vlm_guard.methods.uncertainty import UncertaintyMasking
from vlm_guard.methods.uncertainty.adversarial_probe import _KNOWN, Attack, uncertain_patches, uncertainty_map
from zoo import UNEQUAL_PROMPTS, assert_pristine

torch.set_num_threads(1)
PROMPTS = list(UNEQUAL_PROMPTS)
OPTIONS = {"pixel_std": "0.5,0.25,0.125", "iterations": 3, "threshold": 0.5, "layers": "0", "probe_layers": "0-1"}


@pytest.fixture(autouse=True)
def nothing_known():
    """Models of the zoo are shared between tests; what was probed in one must not be known in the next."""
    _KNOWN.clear()


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_what_it_found_is_a_map_where_patches_form_a_square():
    method = UncertaintyMasking()
    maps = [torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=torch.bfloat16)]
    (found,) = method.findings(FindingsCall(state=None, kept=SimpleNamespace(maps=maps), layers=()))
    assert found.values.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]] and "1 of 9 patches are silenced" in found.text
    assert method.findings(FindingsCall(state=None, kept=SimpleNamespace(maps=[torch.zeros(1, 6)]), layers=())) == []
    assert method.findings(FindingsCall(state=None, kept=SimpleNamespace(), layers=())) == []


def test_map_by_hand():
    # Changes of length 1, 3, 2 and 0, 4, 1: scaled 0, 1, .5 and 0, 1, .25, so the mean is 0, 1, .375.
    zero = torch.zeros(1, 3, 2)
    first = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]])
    second = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [0.0, 1.0]]])
    assert torch.allclose(uncertainty_map([zero, zero], [first, second]), torch.tensor([[0.0, 1.0, 0.375]]))
    assert torch.equal(uncertainty_map([zero], [zero]), torch.zeros(1, 3)), "nothing moves: no uncertainty"


def test_mask_by_hand():
    # Mean .25, population std .433: only the last is (1 - .25) / .433 = 1.73 deviations above.
    values = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert uncertain_patches(values, 1.7).tolist() == [[False, False, False, True]]
    assert not uncertain_patches(values, 1.8).any()
    assert not uncertain_patches(torch.full((1, 4), 0.3), 0.0).any(), "equal patches are never uncertain"


def linear(weight):
    return lambda pixels: (pixels * weight).flatten(1)


def test_the_attack_on_a_linear_tower_goes_to_the_corner():
    """A linear tower changes most away from the start: after enough steps every pixel is at the bound."""
    attack = Attack(radius=torch.tensor([0.1, 0.2, 0.3]), step=torch.tensor([0.04, 0.08, 0.12]), iterations=6, seed=3)
    pixels = torch.rand(2, 3, 4, 4)
    moved = attack(linear(torch.rand(3, 4, 4) + 0.5), pixels)
    change = (moved - pixels).abs()
    for channel, radius in enumerate((0.1, 0.2, 0.3)):
        assert torch.allclose(change[:, channel], torch.full((2, 4, 4), radius), atol=1e-5)


def test_the_first_step_by_hand():
    attack = Attack(radius=torch.full((3,), 1.0), step=torch.full((3,), 0.25), iterations=1, seed=5)
    pixels = torch.zeros(1, 3, 2, 2)
    start = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(5)) * 2 - 1
    # ||F(x) - F(0)||^2 of the identity has the gradient 2x: one step of .25 away from 0, inside the ball.
    assert torch.allclose(attack(linear(torch.ones(3, 2, 2)), pixels)[0], (start + 0.25 * start.sign()).clamp(-1, 1))


@pytest.fixture(scope="module")
def tiny():
    return builtin()


def test_radius_and_step_are_pixels_of_the_processor(tiny):
    model, processor = tiny
    with wrap(model, processor, "uncertainty", radius=3.0, step=1.0) as guard:
        attack = guard.methods[0].prepared.attack
    std = torch.tensor(processor.image_processor.image_std)
    assert torch.allclose(attack.radius * std * 255, torch.full((3,), 3.0))
    assert torch.allclose(attack.step * std * 255, torch.full((3,), 1.0))


def test_the_probe_moves_features_more_than_chance(tiny):
    model, processor = tiny
    with wrap(model, processor, "uncertainty") as guard:
        prepared = guard.methods[0].prepared
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 96, 96)
    tower = prepared.tower.module

    def encode(moved):
        return tower.forward(moved)[0]

    def change(moved):
        with torch.no_grad():
            return float((encode(moved) - encode(pixels)).square().mean())

    few = Attack(radius=prepared.attack.radius, step=prepared.attack.step, iterations=10, seed=0)
    none = Attack(radius=prepared.attack.radius, step=0 * prepared.attack.step, iterations=1, seed=0)
    moved = few(encode, pixels)
    assert change(moved) > 2 * change(none(encode, pixels))
    assert ((moved - pixels).abs() <= prepared.attack.radius.view(1, 3, 1, 1) + 1e-6).all()


def test_it_multiplies_attention_outputs_in_the_tower(zoo_model):
    """Patches above the threshold lose their attention output in the chosen layer; the class token keeps it."""
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "uncertainty", **OPTIONS, strength=0.75) as guard:
        found = logits(zoo.model, inputs)
        (uncertainty,) = guard.findings("uncertainty").maps
    uncertain = uncertain_patches(uncertainty, 0.5)
    assert uncertain.shape == (3, 16) and uncertain.any() and not uncertain.all()
    factor = torch.cat((torch.ones(3, 1), 1 - 0.75 * uncertain.float()), 1)[..., None]
    attention = zoo.model.get_encoder(modality="image").encoder.layers[0].self_attn
    hook = attention.register_forward_hook(lambda module, args, output: (output[0] * factor, *output[1:]))
    expected = logits(zoo.model, inputs)
    hook.remove()
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(expected, logits(zoo.model, inputs), atol=1e-4)
    assert_pristine(zoo.model)


def test_each_image_is_probed_on_its_own(zoo_model):
    zoo = zoo_model("llava")
    with wrap(zoo.model, None, "uncertainty", **OPTIONS) as guard:
        logits(zoo.model, zoo.make_inputs(PROMPTS))
        (together,) = guard.findings("uncertainty").maps
    # Another guard: one guard looks up what it knows.
    with wrap(zoo.model, None, "uncertainty", **OPTIONS) as guard:
        logits(zoo.model, zoo.make_inputs(PROMPTS[1:]))
        (alone,) = guard.findings("uncertainty").maps
    assert torch.allclose(together[1:], alone, atol=1e-4)


def test_once_per_call_and_deterministic(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    with wrap(zoo.model, None, "uncertainty", **OPTIONS) as guard:
        first = guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        maps = guard.findings("uncertainty").maps
        assert len(maps) == 1
    with wrap(zoo.model, None, "uncertainty", **OPTIONS) as guard, torch.inference_mode():
        second = guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(guard.findings("uncertainty").maps[0], maps[0])
    assert torch.equal(first, second)
    with wrap(zoo.model, None, "uncertainty", **OPTIONS | {"seed": 1}) as guard:
        guard.generate(**inputs, max_new_tokens=1)
        assert not torch.equal(guard.findings("uncertainty").maps[0], maps[0])
    assert all(parameter.grad is None for parameter in zoo.model.parameters())


def test_a_picture_is_probed_once_for_all_questions(zoo_model, monkeypatch):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    inputs["pixel_values"][2] = inputs["pixel_values"][0]
    attacked = []
    attack = Attack.__call__
    monkeypatch.setattr(
        Attack, "__call__", lambda self, encode, pixels: attacked.append(len(pixels)) or attack(self, encode, pixels)
    )
    with wrap(zoo.model, None, "uncertainty", **OPTIONS) as guard:
        found = logits(zoo.model, inputs)
        (maps,) = guard.findings("uncertainty").maps
        assert attacked == [2] and torch.equal(maps[0], maps[2]) and not torch.equal(maps[0], maps[1])
        assert torch.equal(logits(zoo.model, inputs), found) and attacked == [2], "looked up"
        weight = zoo.model.get_encoder(modality="image").encoder.layers[0].mlp.fc1.weight.data
        before = weight.clone()
        weight *= 1.5
        logits(zoo.model, inputs)
        weight.copy_(before)
        assert attacked == [2, 2], "other weights, other features: probed again"
    with wrap(zoo.model, None, "uncertainty", **OPTIONS):
        assert torch.equal(logits(zoo.model, inputs), found) and attacked == [2, 2], "known to a later guard"
    with wrap(zoo.model, None, "uncertainty", **OPTIONS | {"iterations": 4}):
        logits(zoo.model, inputs)
        assert attacked == [2, 2, 2], "another attack"


def test_a_picture_beside_others_is_the_same_picture(zoo_model, monkeypatch):
    """Kernels round otherwise in batches of another size; this tower does so by far."""
    zoo = zoo_model("llava")
    tower = describe_vision_tower(zoo.model, "uncertainty").module
    forward = tower.forward

    def rounding(pixel_values, **settings):
        output = forward(pixel_values, **settings)
        output.last_hidden_state = output.last_hidden_state * (1 + 1e-3 * len(pixel_values))
        return output

    attacked = []
    attack = Attack.__call__
    monkeypatch.setattr(
        Attack, "__call__", lambda self, encode, pixels: attacked.append(len(pixels)) or attack(self, encode, pixels)
    )
    monkeypatch.setattr(tower, "forward", rounding)
    with wrap(zoo.model, None, "uncertainty", **OPTIONS):
        logits(zoo.model, zoo.make_inputs(PROMPTS))
        logits(zoo.model, zoo.make_inputs(PROMPTS[1:2]))
    assert attacked == [3]


def test_half_precision(zoo_model):
    zoo = zoo_model("llava", torch.bfloat16)
    inputs = zoo.make_inputs(PROMPTS)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with wrap(zoo.model, None, "uncertainty", **OPTIONS):
        assert torch.isfinite(logits(zoo.model, inputs)).all()


def test_beside_paint_the_probe_is_not_looked_at(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(PROMPTS)
    options = {f"uncertainty.{name}": value for name, value in OPTIONS.items()} | {"paint.layers": "all"}
    with wrap(zoo.model, None, "paint+uncertainty", **options) as guard:
        guard.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert [tuple(part.shape) for part in guard.findings("paint").local] == [(3, 16)]


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_pixtral"])
def test_packed_towers_are_refused(zoo_model, family):
    zoo = zoo_model(family)
    with pytest.raises(ValueError, match=r"uncertainty.*as one sequence"):
        wrap(zoo.model, None, "uncertainty", **OPTIONS)


def test_refusals(zoo_model):
    with pytest.raises(ValueError, match="processor"):
        wrap(zoo_model("llava").model, None, "uncertainty")
    with pytest.raises(ValueError, match="three numbers"):
        wrap(zoo_model("llava").model, None, "uncertainty", pixel_std="1,2")
    with pytest.raises(ValueError, match="vision tower"):
        wrap(zoo_model("fuyu").model, None, "uncertainty", **OPTIONS)
