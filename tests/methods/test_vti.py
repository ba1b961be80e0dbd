"""VTI by hand: its directions, their text form, what it does to the layers, and what is refused."""

import math

import pytest
import torch

from vlm_guard import builtin, wrap
from vlm_guard.eval.data.calibration_prompts import calibration_prompts
from vlm_guard.families.packed_vectors import pack_vectors as pack
from vlm_guard.families.packed_vectors import unpack_vectors as unpack
from vlm_guard.families.profiles import Profile, short_value
from vlm_guard.methods.vti import measuring
from vlm_guard.methods.vti.measuring import caption_pair, measure_directions, principal_direction
from zoo import UNEQUAL_PROMPTS, Prompt, assert_pristine

torch.set_num_threads(1)
PROMPTS = [*UNEQUAL_PROMPTS, Prompt(text_before=2, images=0, text_after=8, content=2)]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_mean_and_first_component_by_hand():
    """Differences (2, 1), (2, -1), (5, 0) of one layer: mean (3, 0), spread 6 along x and 2 along y, so + (1, 0)."""
    found = principal_direction(torch.tensor([[[2.0, 1.0]], [[2.0, -1.0]], [[5.0, 0.0]]]))
    assert torch.allclose(found, torch.tensor([[1.0, 0.0]]))
    # Along y the spread is 8, along x 0; the component (0, 1) takes the mean's sign: (1, 0.5) + (0, 1) = (1, 1.5).
    found = principal_direction(torch.tensor([[[1.0, 2.5]], [[1.0, -1.5]]]))
    assert torch.allclose(found, torch.tensor([[1.0, 1.5]]) / math.sqrt(3.25))
    mirrored = principal_direction(torch.tensor([[[1.0, 1.5]], [[1.0, -2.5]]]))
    assert torch.allclose(mirrored, torch.tensor([[1.0, -1.5]]) / math.sqrt(3.25))


def test_the_component_is_that_of_all_layers_together():
    torch.manual_seed(0)
    differences = torch.randn(6, 3, 4)
    flat = differences.double().flatten(1)
    mean = flat.mean(0)
    component = torch.linalg.svd(flat - mean).Vh[0]
    component = component * torch.sign(component @ mean)
    expected = (mean + component).view(3, 4)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert torch.allclose(principal_direction(differences), expected.float(), atol=1e-6)


def test_the_strange_sentence_comes_before_the_last():
    captions = ["A dog. A cat sits.", "A dog. A bus.", "A dog. A cat sits."]
    assert caption_pair(captions, 0) == ("A dog. A cat sits.", "A dog. A bus. A cat sits.")
    assert caption_pair(captions, 2) == ("A dog. A cat sits.", "A dog. A bus. A cat sits.")
    assert caption_pair(["A dog.", "A dog."], 0) is None and caption_pair(["", "A dog."], 0) is None


def test_directions_as_text():
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(3, 7), dim=-1)
    text = pack(directions)
    assert text.startswith("3x7.") and not {"+", ",", "="} & set(text), "it may stand in a method's text"
    assert torch.allclose(unpack(text, (3, 7), "it"), directions, atol=1e-3)
    for wrong, reason in [
        ("3x7", "must look like"),
        ("3x8." + text[4:], "has 3 layers of 8 numbers, this model 3 of 7"),
        (text[:-4], "does not hold 3 x 7 numbers"),
        (pack(directions * math.inf), "not finite"),
    ]:
        with pytest.raises(ValueError, match=reason):
            unpack(wrong, (3, 7), "it")
    assert short_value(text).endswith("characters)") and short_value("1-4") == "1-4" and short_value([0.5]) == "[0.5]"


def test_it_equals_the_formula_written_into_the_layers(zoo_model):
    zoo = zoo_model("llava")
    inputs, plain = zoo.make_inputs(PROMPTS), None
    plain = logits(zoo.model, inputs)
    torch.manual_seed(1)
    text = torch.nn.functional.normalize(torch.randn(3, 64), dim=-1).half().float()
    tower = zoo.model.model.vision_tower
    encoder = [layer for name, layer in tower.named_modules() if name.endswith(("layers.0", "layers.1", "layers.2"))]
    width = tower.config.hidden_size
    vision = torch.nn.functional.normalize(torch.randn(len(encoder), width), dim=-1).half().float()

    def patch(vector, strength, rows):
        def hook(module, args, m):
            length = m.norm(dim=-1, keepdim=True)
            moved = m / length + 0.1 * strength * vector / vector.norm()
            turned = length * moved / moved.norm(dim=-1, keepdim=True)
            return torch.cat((turned[:rows], m[rows:]))

        return hook

    hooks = [
        layer.mlp.register_forward_hook(patch(v, 2.0, 2)) for layer, v in zip(zoo.model.get_decoder().layers, text)
    ]
    hooks += [layer.mlp.register_forward_hook(patch(v, 3.0, 99)) for layer, v in zip(encoder, vision)]
    expected = logits(zoo.model, inputs)
    for hook in hooks:
        hook.remove()
    options = {"text_direction": pack(text), "vision_direction": pack(vision)}
    with wrap(zoo.model, None, "vti", text_strength=2.0, vision_strength=3.0, **options):
        found = logits(zoo.model, inputs)
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], expected[real], atol=1e-4)
    assert torch.equal(found[2], plain[2]) and not torch.allclose(found[real], plain[real], atol=1e-2)
    assert_pristine(zoo.model)


def test_without_a_direction_it_says_what_to_run(zoo_model):
    model = zoo_model("llava").model
    with pytest.raises(ValueError, match=r"vti needs the text direction of this llava.*calibrate MODEL --only vti"):
        wrap(model, None, "vti")
    text = pack(torch.eye(3, 64))
    with pytest.raises(ValueError, match=r"vti needs the vision direction.*vision_strength=0"):
        wrap(model, None, "vti", text_direction=text)
    with pytest.raises(ValueError, match="text_direction has 2 layers of 64 numbers"):
        wrap(model, None, "vti", text_direction=pack(torch.eye(2, 64)), vision_strength=0.0)


def test_a_tower_of_packed_pictures_is_refused(zoo_model):
    zoo = zoo_model("qwen2_5_vl")
    text = zoo.config.get_text_config(decoder=True)
    direction = pack(torch.eye(text.num_hidden_layers, text.hidden_size))
    with pytest.raises(ValueError, match=r"vti \(vision_strength=0 leaves the tower alone\).*patches of all images"):
        wrap(zoo.model, None, "vti", text_direction=direction)


def test_measured_on_the_builtin_model_and_taken_from_its_profile(monkeypatch):
    monkeypatch.setattr(measuring, "TRIALS", 2)
    monkeypatch.setattr(measuring, "CAPTION_TOKENS", 24)
    model, processor = builtin()
    descriptions, _ = calibration_prompts(
        model, processor, "scenes:common:11", 3, "Please describe this image in detail."
    )
    facts = measure_directions(model, processor, descriptions)
    assert {*facts} == {"vti_text_direction", "vti_vision_direction"}
    assert all(fact.source == "calibrated" and "sha256" in fact.note for fact in facts.values())
    other = measure_directions(model, processor, descriptions[:2])
    assert other["vti_text_direction"].note != facts["vti_text_direction"].note
    plain = logits(model, descriptions[0])
    with wrap(model, processor, "vti", profile=Profile(name="own", match={}, facts=facts)):
        assert not torch.allclose(logits(model, descriptions[0]), plain, atol=1e-3)
    with pytest.raises(ValueError, match="at least two pictures"):
        measure_directions(model, processor, descriptions[:1])


def test_text_read_before_any_picture_is_refused(zoo_model):
    from transformers import DynamicCache

    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt(text_before=3, text_after=5, content=0)])
    with wrap(zoo.model, None, "vti", text_direction=pack(torch.eye(3, 64)), vision_strength=0.0) as guard:
        begin = {name: inputs[name][:, :2] for name in ("input_ids", "attention_mask")}
        with pytest.warns(UserWarning, match="no visual token"):
            cache = zoo.model(**begin, use_cache=True, past_key_values=DynamicCache()).past_key_values
        with pytest.raises(ValueError, match="vti edits all rows of a prompt"):
            guard.generate(**inputs, past_key_values=cache, max_new_tokens=2)
