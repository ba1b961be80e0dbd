import json

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_guard.builtin_model import builtin
from vlm_guard.eval.scenes.render import render
from vlm_guard.eval.training.answers import SceneReader
from vlm_guard.eval.training.checkpoints import load_moments, load_weights, read_progress, save_checkpoint
from vlm_guard.eval.training.loop import learning_rate, make_optimiser, restore, train_stage
from vlm_guard.eval.training.model import CHAT_TEMPLATE, new_model, new_processor, normalise
from vlm_guard.eval.training.recipe import Recipe, recipe_for
from vlm_guard.eval.training.targets import TARGETS, total_shortfall, verdicts


def test_answers_equal_generate_with_the_processors_inputs():
    torch.set_num_threads(1)
    model, processor = builtin()
    scenes = [render("common", 77, index) for index in range(6)]
    pixels = np.stack([scene.pixels for scene in scenes])
    question = "Please describe this image in detail."
    fast = SceneReader(model, processor.tokenizer, pixels).ask(range(6), [question] * 6)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.fromarray(p) for p in pixels], text=[text] * 6, return_tensors="pt", padding=True)
    assert torch.allclose(inputs["pixel_values"], normalise(torch.from_numpy(pixels)), atol=1e-6)
    generated = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    new = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [caption.strip() for caption in new] == fast


def test_new_model_is_small_and_seeded():
    model = new_model(3)
    assert sum(weight.numel() for weight in model.parameters()) * 2 < 16e6
    again = new_model(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    other = new_model(4)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_checkpoint_brings_back_weights_moments_and_progress(tmp_path):
    model = new_model(0)
    optimiser = make_optimiser(model, Recipe(tower_scale=0.25), "joint")
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, optimiser, {"stage": "joint", "elapsed": 12.5, "steps": 1})
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    other = new_model(1)
    assert restore(tmp_path, other) == ("joint", 12.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    resumed = make_optimiser(other, Recipe(tower_scale=0.25), "joint")
    load_moments(path, other, resumed)
    for (_, mine), (_, theirs) in zip(model.named_parameters(), other.named_parameters()):
        assert torch.equal(optimiser.state[mine]["exp_avg_sq"], resumed.state[theirs]["exp_avg_sq"])
        assert float(resumed.state[theirs]["step"]) == 1
    assert read_progress(path)["steps"] == 1
    assert restore(tmp_path / "nowhere", other) == ("vision", 0.0)


def test_recipes_are_checked():
    assert recipe_for("cuda").workers == 1 and recipe_for("cpu").workers == 2
    assert recipe_for("cuda").minutes == pytest.approx(20) and recipe_for("cpu").minutes <= 100
    half = recipe_for("cpu", recipe_for("cpu").minutes / 2)
    assert half.joint_minutes == pytest.approx(recipe_for("cpu").joint_minutes / 2)
    with pytest.raises(ValueError, match="at least 1000"):
        Recipe(scenes=10)
    with pytest.raises(ValueError, match="minutes must be"):
        Recipe(finish_minutes=0)


def test_learning_rate_warms_up_and_falls():
    assert learning_rate(1.0, 0.0, 0) < 0.02
    assert learning_rate(1.0, 0.0, 500) == pytest.approx(1.0)
    assert learning_rate(1.0, 1.0, 500) == pytest.approx(0.04)


def test_targets_measure_the_distance_to_a_range():
    presence = {"valid": 100.0} | {
        kind: {"f1": f1} for kind, f1 in (("random", 95), ("popular", 88), ("adversarial", 80))
    }
    good = {"recall": 70, "chair_i": 15, "repeated": 2}
    measured = {
        "common": {"detailed": good, "presence": presence},
        "broken": {"detailed": good | {"chair_i": 30}, "presence": presence},
    }
    assert total_shortfall(measured) == 0
    measured["broken"]["detailed"]["chair_i"] = 45
    assert total_shortfall(measured) == 7
    assert [v["target"] for v in verdicts(measured, TARGETS) if not v["met"]] == ["broken: CHAIR_i"]


@pytest.mark.slow
def test_a_short_run_learns_resumes_and_loads(tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlm_guard.eval.training.run import _prepare, export

    torch.set_num_threads(1)
    recipe = Recipe(
        vision_minutes=0.04,
        joint_minutes=0.05,
        finish_minutes=0.025,
        scenes=1000,
        workers=1,
        vision_batch=8,
        joint_batch=4,
    )
    _prepare(tmp_path, recipe)
    with pytest.raises(ValueError, match="other settings"):
        _prepare(tmp_path, Recipe(scenes=1000, workers=1))
    model = new_model(0)
    train_stage(0, model, recipe, "vision", tmp_path, 0.0)
    train_stage(0, model, recipe, "joint", tmp_path, 0.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["stage"] == "vision" and lines[-1]["stage"] == "joint"
    assert 0 < lines[-1]["caption_loss"] < 20
    assert not torch.equal(model.lm_head.weight, new_model(0).lm_head.weight)
    stage, elapsed = restore(tmp_path, model)
    assert stage == "joint" and elapsed == pytest.approx(3, abs=0.1)
    steps = read_progress(tmp_path / "checkpoint.safetensors")["steps"]
    train_stage(0, model, recipe, "joint", tmp_path, elapsed - 1.5)
    assert read_progress(tmp_path / "checkpoint.safetensors")["steps"] > steps
    train_stage(0, model, recipe, "finish", tmp_path, 0.0)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "finish" and last["steps"] > steps, "it goes on from the joint stage"
    snapshot = tmp_path / "snapshots" / "finish_100.safetensors"
    target = export(tmp_path, snapshot)
    loaded = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32)
    load_weights(snapshot, model)
    assert torch.allclose(loaded.lm_head.weight, model.lm_head.weight, atol=0.01)
    assert type(AutoProcessor.from_pretrained(target)).__name__ == "LlavaProcessor"


def test_chat_template_forms(tmp_path):
    from transformers import AutoTokenizer

    from vlm_guard.builtin_model import BUILTIN_DIR

    processor = new_processor(AutoTokenizer.from_pretrained(BUILTIN_DIR))
    assert processor.chat_template == CHAT_TEMPLATE
    picture = [{"type": "image"}, {"type": "text", "text": "Describe."}]
    turns = [
        {"role": "user", "content": picture},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": "Sure?"},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert text == "USER: <image>\nDescribe. ASSISTANT: A dog.</s>USER: \nSure? ASSISTANT:"


def test_a_frozen_tower_is_left_out_of_the_joint_stage():
    model = new_model(0)
    optimiser = make_optimiser(model, Recipe(tower_scale=0.0), "joint")
    held = {id(weight) for group in optimiser.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        assert (id(weight) in held) == weight.requires_grad == ("vision_tower" not in name)
