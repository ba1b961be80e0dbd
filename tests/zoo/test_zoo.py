"""Every zoo model is a working model: its batches, its image tokens, its determinism."""

import copy

import pytest
import torch
from PIL import Image as PILImage
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from zoo import FAMILIES, Prompt, assert_pristine, build, families, is_pristine, tiny_processor
from zoo.prompts import SPECIAL_IDS, VOCABULARY
from zoo.tiny_processor import PROCESSORS

NEW_TOKENS = 6


@torch.no_grad()
def logits(zoo, inputs):
    return zoo.model(**inputs).logits


def generated(zoo, inputs):
    return zoo.model.generate(**inputs, max_new_tokens=NEW_TOKENS)[:, -NEW_TOKENS:]


@pytest.mark.parametrize("family", families())
def test_batch_of_unequal_rows_runs_and_generates(family, zoo_model, prompts):
    zoo = zoo_model(family)
    prompts = zoo.adapt(prompts)
    inputs = zoo.make_inputs(prompts)
    assert not inputs["attention_mask"].all()
    values = logits(zoo, inputs)
    assert values.isfinite().all()
    last = values[:, -1, :VOCABULARY]
    assert 0.3 < last.std() < 30
    assert (torch.cdist(last, last) + torch.eye(len(last)) * 9 > 0.5).all(), "rows do not differ clearly"
    new = generated(zoo, inputs)
    assert new.shape == (len(prompts), NEW_TOKENS)
    assert not torch.isin(new, torch.tensor(SPECIAL_IDS)).any()
    assert_pristine(zoo.model)


@pytest.mark.parametrize("family", families())
def test_padded_row_equals_the_row_alone(family, zoo_model, prompts):
    zoo = zoo_model(family)
    prompts = zoo.adapt(prompts)
    together = logits(zoo, zoo.make_inputs(prompts))
    worst = 0.0
    for row, prompt in enumerate(prompts):
        inputs = zoo.make_inputs([prompt])
        tokens = inputs["input_ids"].shape[1]
        difference = together[row, -tokens:] - logits(zoo, inputs)[0, -tokens:]
        worst = max(worst, float(difference[:, :VOCABULARY].abs().max()))
    if FAMILIES[family].batch_invariant:
        assert worst < 1e-3
    else:
        assert worst > 0.1, f"{family} has become batch invariant (difference {worst:.1e}): update its entry"
        assert "not batch invariant" in FAMILIES[family].facts


@pytest.mark.parametrize("family", families())
def test_visual_mask_is_the_models_own_and_counts_the_image_tokens(family, zoo_model, prompts):
    zoo = zoo_model(family)
    prompts = zoo.adapt(prompts)
    inputs = zoo.make_inputs(prompts)
    if zoo.image_token_id is None:
        with pytest.raises(ValueError, match="marks no visual tokens in input_ids"):
            zoo.expected_visual_mask(inputs)
        return
    mask = zoo.expected_visual_mask(inputs)
    assert mask.shape == inputs["input_ids"].shape
    assert torch.equal(mask, inputs["input_ids"] == zoo.image_token_id)
    assert mask.sum(1).tolist() == zoo.visual_tokens(prompts)
    assert_pristine(zoo.model)


@pytest.mark.parametrize("family", families())
def test_the_image_matters(family, zoo_model, prompts):
    zoo = zoo_model(family)
    prompts = zoo.adapt(prompts)
    one = prompts[0]
    inputs = zoo.make_inputs([one])
    before = logits(zoo, inputs)[0, -1]
    inputs["pixel_values"] = torch.flip(inputs["pixel_values"], dims=[-1])
    assert (logits(zoo, inputs)[0, -1] - before).abs().max() > 1e-2


VIDEO_FAMILIES = [name for name in families() if FAMILIES[name].video_run is not None]


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_videos_and_images_in_one_batch(family, zoo_model):
    zoo = zoo_model(family)
    rows = [
        Prompt(text_before=3, images=1, videos=1, text_after=4, content=0),
        Prompt(text_before=5, images=0, videos=2, text_after=9, content=1),
        Prompt(text_before=5, images=1, text_after=3, content=2),
    ]
    inputs = zoo.make_inputs(rows)
    mask = zoo.expected_visual_mask(inputs)
    assert mask.sum(1).tolist() == zoo.visual_tokens(rows)
    assert torch.equal(mask, torch.isin(inputs["input_ids"], torch.tensor([zoo.image_token_id, zoo.video_token_id])))
    together = logits(zoo, inputs)
    for row, prompt in enumerate(rows):
        alone = logits(zoo, zoo.make_inputs([prompt]))[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-3, rtol=0)
    assert generated(zoo, inputs).shape == (3, NEW_TOKENS)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].flip(-1)
    assert (logits(zoo, inputs) - together)[0, -1].abs().max() > 1e-2


def test_family_without_videos_says_so(zoo_model):
    with pytest.raises(ValueError, match="no video inputs for llava"):
        zoo_model("llava").make_inputs([Prompt(videos=1)])


@pytest.mark.parametrize("family", families())
def test_bfloat16_generates(family, zoo_model, prompts):
    zoo = zoo_model(family, torch.bfloat16)
    assert generated(zoo, zoo.make_inputs(zoo.adapt(prompts))).shape == (len(prompts), NEW_TOKENS)


@pytest.mark.parametrize("family", families())
def test_text_only_prompt(family, zoo_model):
    zoo, prompt = zoo_model(family), Prompt(images=0, text_after=9)
    if FAMILIES[family].images_per_row is None:
        assert generated(zoo, zoo.make_inputs([prompt])).shape == (1, NEW_TOKENS)
    else:
        with pytest.raises(ValueError, match=r"exactly 1 image\(s\) per row"):
            zoo.make_inputs([prompt])


def test_same_seed_same_model_other_seed_other_model(prompts):
    first, again, other = build("llava"), build("llava"), build("llava", seed=1)
    inputs = first.make_inputs(prompts)
    assert torch.equal(logits(first, inputs), logits(again, inputs))
    assert not torch.allclose(logits(first, inputs), logits(other, inputs))


def test_right_padding_puts_the_row_first(zoo_model, prompts):
    zoo = zoo_model("llava")
    left, right = zoo.make_inputs(prompts), zoo.make_inputs(prompts, padding_side="right")
    for row in range(len(prompts)):
        count = int(left["attention_mask"][row].sum())
        assert torch.equal(left["input_ids"][row, -count:], right["input_ids"][row, :count])
        assert right["attention_mask"][row, :count].all() and not right["attention_mask"][row, count:].any()


def test_unknown_family_and_bad_prompt_say_what_is_allowed():
    with pytest.raises(ValueError, match="unknown zoo family 'lava'; known: llava"):
        build("lava")
    with pytest.raises(ValueError, match=r"images 0\.\.4"):
        Prompt(images=7)


def _add_hook(model):
    model.model.language_model.layers[0].register_forward_hook(lambda *_: None)


def _set_generate(model):
    model.generate = model.generate


def _set_attention(model):
    model.set_attn_implementation({"text_config": "eager"})


def _change_weight(model):
    model.lm_head.weight.data[0, 0] += 1.0


def _add_buffer(model):
    model.model.language_model.layers[0].self_attn.register_buffer("mask", torch.ones(2), persistent=False)


def _train(model):
    model.train()


def _change_last_bit(model):
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(torch.inf))


CHANGES = [_add_hook, _set_generate, _set_attention, _change_weight, _change_last_bit, _add_buffer, _train]


@pytest.mark.parametrize("change", CHANGES)
def test_pristine_notices_every_kind_of_change(change):
    model = build("llava").model
    assert_pristine(model)
    change(model)
    assert not is_pristine(model)
    with pytest.raises(AssertionError, match="not as it was built"):
        assert_pristine(model)


def test_pristine_refuses_a_model_it_has_not_seen():
    with pytest.raises(ValueError, match="not built by the zoo"):
        is_pristine(copy.deepcopy(build("llava").model))


def test_changed_model_is_built_anew(zoo_model):
    first = zoo_model("llava")
    assert zoo_model("llava") is first
    _set_generate(first.model)
    assert zoo_model("llava") is not first


def noise_image(width=40, height=30):
    return PILImage.effect_noise((width, height), 80).convert("RGB")


@pytest.mark.parametrize("family", list(PROCESSORS))
def test_tiny_processor_drives_the_model(family, zoo_model, zoo_processor):
    zoo, processor = zoo_model(family), zoo_processor(family)
    ask = {"type": "text", "text": "describe the image please."}
    chat = [{"role": "user", "content": [{"type": "image"}, ask]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text.startswith("USER : <im") and text.endswith("> describe the image please. ASSISTANT :")
    images = [[noise_image()], [noise_image(30, 40)]]
    inputs = processor(images=images, text=[text, "USER : " + text], return_tensors="pt", padding=True)
    assert inputs["input_ids"].max() < zoo.config.text_config.vocab_size
    assert not (inputs["input_ids"] == processor.tokenizer.unk_token_id).any()
    mask = zoo.expected_visual_mask(inputs)
    assert torch.equal(mask, inputs["input_ids"] == zoo.image_token_id) and mask.any(1).all()
    output = zoo.model.generate(**inputs, max_new_tokens=4)
    answers = processor.batch_decode(output[:, -4:], skip_special_tokens=True)
    assert [len(answer.split()) for answer in answers] == [4, 4]


def test_family_without_processor_says_which_have_one():
    with pytest.raises(ValueError, match="no tiny processor for 'qwen3_vl'; there is one for llava"):
        tiny_processor("qwen3_vl")


def test_tiny_processor_works_in_a_pipeline(zoo_model, zoo_processor):
    run = pipeline("image-text-to-text", model=zoo_model("llava").model, processor=zoo_processor("llava"))
    answer = run(images=noise_image(), text="USER : <image> what is this ? ASSISTANT :", max_new_tokens=3)
    assert answer[0]["generated_text"].startswith("USER")


def test_processor_and_model_survive_saving(zoo_model, zoo_processor, tmp_path):
    zoo_model("llava").model.save_pretrained(tmp_path)
    zoo_processor("llava").save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(images=noise_image(), text="USER : <image> who ?", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, zoo_model("llava").model(**inputs).logits)
