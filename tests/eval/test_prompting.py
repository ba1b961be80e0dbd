"""Prompts for processors of several families, and answering a batch with a model of the zoo."""

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_guard import builtin
from vlm_guard.eval.run.generation import Decoding, MemoryPeak, generate_batch
from vlm_guard.eval.run.models import identify, load_model, prepare_processor
from vlm_guard.eval.run.prompting import PLAIN_TEMPLATE, find_template

PROMPTS = ("is there a dog in the image ?", "describe the picture in detail please")


def pictures(count: int = 2) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (count, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.mark.parametrize("family", ["llava", "llava_next", "gemma3"])
def test_a_batch_is_padded_on_the_left_and_rows_are_those_of_single_prompts(zoo_processor, family):
    processor = zoo_processor(family)
    prepare_processor(processor)
    template = find_template(processor)
    batch = template.encode(processor, pictures(), PROMPTS)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert 0 in batch["attention_mask"][:, 0].tolist()
    bos = processor.tokenizer.bos_token_id
    for row, (picture, prompt) in enumerate(zip(pictures(), PROMPTS)):
        alone = template.encode(processor, [picture], [prompt])
        real = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert torch.equal(real, alone["input_ids"][0])
        assert (alone["input_ids"][0] == bos).sum() == 1


def test_a_template_that_writes_the_first_token_itself_gets_no_second_one(zoo_processor):
    processor = zoo_processor("llava")
    processor.chat_template = "<s> " + processor.chat_template
    ids = find_template(processor).encode(processor, pictures(1), PROMPTS[:1])["input_ids"][0]
    assert (ids == processor.tokenizer.bos_token_id).sum() == 1


def test_without_a_chat_template_the_plain_form_is_used_and_named(zoo_processor):
    processor = zoo_processor("llava")
    processor.chat_template = None
    template = find_template(processor)
    assert (template.source, template.text) == ("plain", PLAIN_TEMPLATE)
    assert template.render(processor, "what { } is it ?") == "USER: <image>\nwhat { } is it ? ASSISTANT:"
    assert template.describe()["text"] == PLAIN_TEMPLATE
    del processor.image_token
    with pytest.raises(ValueError, match="neither a chat template nor an image token"):
        template.render(processor, "what is it ?")


def test_a_given_template_needs_both_marks(zoo_processor):
    processor = zoo_processor("llava")
    assert find_template(processor, "A: {image} {prompt} B:").render(processor, "x") == "A: <image> x B:"
    with pytest.raises(ValueError, match=r"\{image\} and \{prompt\}"):
        find_template(processor, "{prompt}")


def test_a_model_of_the_zoo_answers_a_batch_as_it_answers_single_prompts(zoo_model, zoo_processor):
    model, processor = zoo_model("llava").model, zoo_processor("llava")
    prepare_processor(processor)
    template = find_template(processor)
    answered = generate_batch(model, processor, template.encode(processor, pictures(), PROMPTS), Decoding(), 6, seed=0)
    for row, (picture, prompt) in enumerate(zip(pictures(), PROMPTS)):
        alone = generate_batch(model, processor, template.encode(processor, [picture], [prompt]), Decoding(), 6, seed=0)
        assert alone.answers[0] == answered.answers[row]
    assert answered.seconds > 0
    assert answered.memory_bytes > 2**20


def test_beams_are_handed_to_generate():
    model, processor = builtin()
    inputs = find_template(processor).encode(processor, pictures(1), ["Please describe this image in detail."])
    greedy = generate_batch(model, processor, inputs, Decoding(), 16, seed=0)
    beams = generate_batch(model, processor, inputs, Decoding(num_beams=4), 16, seed=0)
    with torch.inference_mode():
        expected = model.generate(**inputs, num_beams=4, do_sample=False, max_new_tokens=16)
    text = processor.decode(expected[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert beams.answers[0].text == text
    assert greedy.answers[0].tokens > 0


def test_the_memory_peak_sees_what_is_allocated_meanwhile():
    if MemoryPeak(torch.device("cpu")).kind != "resident set":
        pytest.skip("the kernel does not let us set the high-water mark back")
    torch.ones(48 * 2**20, dtype=torch.uint8).sum()  # earlier memory, given back: it must not count
    before = MemoryPeak(torch.device("cpu")).bytes()
    peak = MemoryPeak(torch.device("cpu"))
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak.bytes() - before > 48 * 2**20
    del block
    assert MemoryPeak(torch.device("cpu")).bytes() - before < 40 * 2**20


def test_weights_are_identified_by_their_bytes(tmp_path):
    model, processor = builtin()
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    same = [load_model(str(tmp_path / name), device="cpu").identity for name in ("first", "second")]
    assert same[0]["weights"] == same[1]["weights"]
    assert (same[0]["name"], same[0]["revision"]) == ("first", None)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "second")
    assert identify(str(tmp_path / "second"), model)["weights"] != same[0]["weights"]


def test_large_folders_are_hashed_by_samples_and_say_so(tmp_path, monkeypatch):
    from vlm_guard.eval.run import models

    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    full = models.hash_weights(tmp_path)
    monkeypatch.setattr(models, "_FULL_HASH_LIMIT", 1000)
    assert full.startswith("sha256:") and models.hash_weights(tmp_path).startswith("sampled-sha256:")
