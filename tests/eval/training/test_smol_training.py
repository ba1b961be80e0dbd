"""The parts of training the model with a real language model inside that need none of its packages."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlavaForConditionalGeneration

from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import SIZE, render
from vlm_guard.eval.training.questions import LEADING_NO, LEADING_YES, exchanges
from vlm_guard.eval.training.smol.losses import naming_loss, repeat_loss
from vlm_guard.eval.training.smol.low_rank import UP_SCALE, LowRankLinear
from vlm_guard.eval.training.smol.pictures import draw_pictures
from vlm_guard.eval.training.smol.recipe import Recipe
from vlm_guard.eval.training.smol.run import train
from vlm_guard.eval.training.smol.seeing import cosine_rate
from vlm_guard.eval.training.smol.ship import ship
from vlm_guard.eval.training.smol.speaking import Speaker
from vlm_guard.eval.training.smol.text_replay import text_questions
from vlm_guard.eval.training.smol.views import far_view, mirrored, near_view
from vlm_guard.smol_model.adapter import apply_trained
from vlm_guard.smol_model.layout import configuration

torch.set_num_threads(1)


def near(found, expected):
    """Whether two tensors agree to bfloat16's precision."""
    return float((found.float() - expected).norm() / expected.norm()) < 0.01


def test_the_low_rank_product_and_its_gradients_are_those_of_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    module = LowRankLinear(torch.randn(48, 32, generator=generator), 4, generator)
    with torch.no_grad():
        module.up.normal_(generator=generator)
    x = torch.randn(2, 5, 32, generator=generator, requires_grad=True)
    given = torch.randn(2, 5, 48, generator=generator)
    out = module(x)
    out.backward(given.to(out.dtype))
    down, up, plain = (item.detach().clone().requires_grad_() for item in (module.down, module.up, x))
    expected = plain @ module.frozen.float().T + UP_SCALE * (plain @ down.T) @ up.T
    expected.backward(given)
    pairs = [(out, expected), (x.grad, plain.grad), (module.down.grad, down.grad), (module.up.grad, up.grad)]
    assert all(near(found, wanted) for found, wanted in pairs)


def test_a_change_begins_as_no_change():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 6, generator=generator).to(torch.bfloat16)
    x = torch.randn(3, 6, generator=generator).to(torch.bfloat16)
    assert torch.equal(LowRankLinear(weight, 2, generator)(x), F.linear(x, weight))


def small_model(seed):
    torch.manual_seed(seed)
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(configuration(text)).eval()


def test_the_exported_part_makes_of_the_model_what_training_had(tmp_path):
    trained = small_model(0)
    start = {name: weight.clone() for name, weight in trained.state_dict().items()}
    speaker = Speaker(trained, rank=3, seed=5)
    with torch.no_grad():
        for name, weight in speaker.trained.named_parameters():
            weight.normal_(std=0.3) if name.endswith("up") else None
        speaker.trained["projector"].linear_1.bias.fill_(0.25)
    tensors = speaker.trained_tensors()
    tensors |= {f"vision_tower.{name}": weight for name, weight in trained.model.vision_tower.state_dict().items()}
    save_file({name: weight.to(torch.bfloat16).contiguous() for name, weight in tensors.items()}, tmp_path / "t")
    rebuilt = small_model(1)
    rebuilt.load_state_dict(start)
    before = rebuilt.model.language_model.layers[0].mlp.up_proj.weight.clone()
    apply_trained(rebuilt, tmp_path / "t")
    assert not torch.equal(before, rebuilt.model.language_model.layers[0].mlp.up_proj.weight)
    assert torch.all(rebuilt.model.multi_modal_projector.linear_1.bias == 0.25)
    ids = torch.tensor([[1, 20, 30, 40, 50]])
    length = ids.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        expected = speaker.hidden(speaker.embeddings[ids], allowed, torch.arange(length)[None]).float()
    found = rebuilt.model.language_model(input_ids=ids).last_hidden_state
    assert float((found - expected).norm() / expected.norm()) < 0.03
    tensors.pop("projector.linear_1.bias")
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, tmp_path / "lacking")
    with pytest.raises(ValueError, match=r"1 tensors differ, the first is projector.linear_1.bias"):
        apply_trained(rebuilt, tmp_path / "lacking")
    with pytest.raises(FileNotFoundError, match=r"python -m vlm_guard.eval.training.smol OUT"):
        apply_trained(rebuilt, tmp_path / "nowhere")


def scenes(count=30):
    return [render("common", 91, index) for index in range(count)]


def test_an_enlarged_part_shows_fewer_things_larger():
    for index, scene in enumerate(scenes()):
        view = near_view(scene, Draws(index))
        assert view.pixels.shape == (SIZE, SIZE, 3) and view.pixels.dtype == np.uint8
        assert view.present <= scene.present and len(view.objects) <= len(scene.objects)
        assert set(np.unique(view.patches)) <= {0, *(category + 1 for category in scene.drawn)}
    largest = [max((item.area for item in scene.objects), default=0) for scene in scenes()]
    enlarged = [
        max((o.area for o in near_view(scene, Draws(i)).objects), default=0) for i, scene in enumerate(scenes())
    ]
    assert np.mean(enlarged) > 1.5 * np.mean(largest)


def test_a_scene_made_smaller_keeps_what_can_still_be_seen():
    kept = there = 0
    for index, scene in enumerate(scenes()):
        view = far_view(scene, Draws(index))
        assert view.present <= scene.present
        assert sum(item.area for item in view.objects) < sum(item.area for item in scene.objects)
        kept, there = kept + len(view.present), there + len(scene.present)
        # Outside the smaller scene there is one colour with noise, and nothing.
        empty = view.pixels[view.owner == 0]
        assert len(empty) > 0.3 * SIZE * SIZE
    assert 0.7 * there < kept <= there


def test_a_mirrored_scene_is_the_scene_with_left_and_right_exchanged():
    for scene in scenes(8):
        twice = mirrored(mirrored(scene))
        assert np.array_equal(twice.pixels, scene.pixels) and twice.objects == scene.objects
        once = mirrored(scene)
        assert np.array_equal(once.patches, scene.patches[:, ::-1]) or once.present == scene.present
        boxes = {(item.category, SIZE - item.box[0] - item.box[2], item.box[1]) for item in scene.objects}
        assert {(item.category, item.box[0], item.box[1]) for item in once.objects} == boxes


def test_repeats_cost_what_they_are_given_and_right_words_nothing():
    firsts = torch.stack((torch.arange(80), torch.arange(80) + 80), 1)
    targets = torch.tensor([3, 200, 5, 200])
    exchange = torch.tensor([0, 0, 0, 0])
    scores = torch.full((4, 256), -30.0)
    scores[:, 250] = 0.0
    nothing = repeat_loss(scores, targets, exchange, firsts)
    assert float(nothing) < 1e-6
    scores[3, 83] = 0.0  # the plural of 3, which was named: half of the probability
    found = repeat_loss(scores, targets, exchange, firsts)
    assert float(found) == pytest.approx(-np.log(0.5) / 4, rel=1e-4)
    other = repeat_loss(scores, targets, torch.tensor([0, 0, 1, 1]), firsts)
    assert float(other) < 1e-6, "another description named it"
    shared = firsts.clone()
    shared[7, 0] = 3  # two categories begin with the same token
    scores[3, 3], targets[3] = 5.0, 3
    assert float(repeat_loss(scores, targets, exchange, shared)) < 0.01


def test_enlarged_parts_without_labels_name_nothing():
    names = F.normalize(torch.randn(81, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    visual = names[torch.tensor([[4, 0, 9]])]
    loss, accuracy = naming_loss(visual, torch.tensor([[4, 0, -1]]), names)
    assert accuracy == 1 and torch.isfinite(loss)
    assert torch.equal(loss, naming_loss(visual, torch.tensor([[4, 0, -1]]), names)[0])


def test_agreement_with_leading_questions_is_not_trained():
    marks = ("I think", "isn't there", "expert", "I cannot", "I don't", "right?", "I can see", "There is")
    assert all(any(mark in form for mark in marks) for form in LEADING_YES[:-1] + LEADING_NO[:3])
    scene = render("common", 91, 1)
    frequency = np.arange(80)
    for index in range(200):
        items = exchanges(Draws(index), scene.scene_type, list(scene.objects), frequency, leading=0)
        asked = [item.question for item in items if item.kind == "yes_no"]
        assert not any(mark in question for question in asked for mark in marks)


def test_questions_without_a_picture_leave_france_for_the_test():
    questions = text_questions(400, 0)
    assert len(questions) == len(set(questions)) > 150
    assert not any("France" in question or "Paris" in question for question in questions)
    assert text_questions(20, 0) == text_questions(20, 0) != text_questions(20, 1)


def test_the_rate_warms_up_and_falls_to_little():
    rates = [cosine_rate(1.0, step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01) and max(rates) > 0.95
    assert rates[-1] < 0.05 and rates[20:] == sorted(rates[20:], reverse=True)


def test_pictures_are_drawn_once_and_are_those_of_their_stage(tmp_path):
    recipe = Recipe(see_pictures=8, speak_pictures=12, workers=1, second_view=100, near=0, far=50)
    store = draw_pictures(tmp_path / "speak", "speak", recipe)
    again = draw_pictures(tmp_path / "speak", "speak", recipe)
    assert len(store) == 12 and np.array_equal(store.pixels, again.pixels)
    second = np.load(tmp_path / "speak" / "has_second.npy")
    pixels = np.load(tmp_path / "speak" / "second.npy")
    assert 0 < second.sum() < 12, "an enlarged part stands behind whole scenes only"
    assert all(pixels[index].any() == flag for index, flag in enumerate(second))
    seen = draw_pictures(tmp_path / "see", "see", recipe)
    assert not np.array_equal(seen.pixels[:8], store.pixels[:8])


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"recipe": Recipe(seed=1).as_json()}))
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        train(tmp_path, Recipe(seed=2))
    with pytest.raises(ValueError, match="at least 1"):
        Recipe(workers=0)


def test_only_a_finished_run_is_shipped(tmp_path):
    out, target = tmp_path / "out", tmp_path / "trained"
    out.mkdir()
    with pytest.raises(FileNotFoundError, match="goes on with it"):
        ship(out, target)
    (out / "trained.safetensors").write_bytes(b"weights")
    (out / "recipe.json").write_text("{}")
    (out / "log.jsonl").write_text('{"stage": "speak", "step": 40, "of": 250}\n')
    with pytest.raises(ValueError, match="ends with step 40 of 250 of speak"):
        ship(out, target)
    (out / "log.jsonl").write_text('{"stage": "speak", "step": 249, "of": 250}\n')
    ship(out, target)
    assert sorted(path.name for path in target.iterdir()) == ["log.jsonl", "recipe.json", "trained.safetensors"]
    assert (target / "trained.safetensors").read_bytes() == b"weights"
