"""CARVE by hand: contrast, fusion, regions, crop; grids of real images; the inputs of the answer."""

import numpy as np
import pytest
import torch
from eager_oracle import eager_attention
from PIL import Image, ImageDraw

from vlm_guard import builtin, wrap
from vlm_guard.families.patch_grid import PlacedImage, place_images
from vlm_guard.families.pictures import magnify_regions, recover_pictures, seen_part, stretch
from vlm_guard.methods.carve.connected_regions import label_regions
from vlm_guard.methods.carve.contrastive_map import choose_regions, contrast_steps, refine_picture
from zoo import Prompt, assert_pristine, tiny_processor

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny():
    return builtin()


def picture(seed=0, size=(96, 96)):
    noise = np.random.default_rng(seed).integers(60, 200, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse((10 + seed, 50, 40 + seed, 80), fill=(200, 30, 30))
    return image


def inputs_of(processor, questions, pictures):
    texts = []
    for question in questions:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        texts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
    return processor(text=texts, images=pictures, padding=True, return_tensors="pt")


def test_contrast_by_hand():
    # Two steps, one layer, two tokens; the general answer has only these two of its three steps used.
    question = torch.tensor([[[0.2, 0.1]], [[0.3, 0.3]]])
    general = torch.tensor([[[0.1, 0.1]], [[0.1, 0.3]], [[9.0, 9.0]]])
    # Token 0: 1 x 2 + 2 x 3 = 8; token 1: 1 x 1 + 2 x 1 = 3.
    assert torch.allclose(contrast_steps(question, general), torch.tensor([8.0, 3.0], dtype=torch.float64), atol=1e-5)


def test_layers_add_up():
    question, general = torch.rand(3, 4, 5), torch.rand(3, 4, 5) + 0.1
    apart = sum(contrast_steps(question[:, layer : layer + 1], general[:, layer : layer + 1]) for layer in range(4))
    assert torch.allclose(contrast_steps(question, general), apart)


@pytest.mark.parametrize("seed", range(6))
def test_regions_equal_scipys(seed):
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(seed).random((23, 31)) < 0.3 + 0.1 * seed
    ours, count = label_regions(mask)
    theirs, expected = ndimage.label(mask)
    assert count == expected and np.array_equal(ours, theirs)


def test_regions_of_nothing_and_of_a_spiral():
    assert label_regions(np.zeros((3, 4), bool))[1] == 0
    comb = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
    assert label_regions(comb)[1] == 1


def test_best_regions_by_hand():
    fused = np.zeros((4, 6))
    fused[0, 0], fused[0, 5], fused[3, 0:2] = 9.0, 8.0, 5.0
    # The highest sixth are the four pixels above 0 in three regions, of sums 9, 8 and 10.
    share = 4 / 24
    assert choose_regions(fused, share, 3).sum() == 4
    assert np.array_equal(np.argwhere(choose_regions(fused, share, 1)), [[3, 0], [3, 1]])
    assert np.array_equal(np.argwhere(choose_regions(fused, share, 2)), [[0, 0], [3, 0], [3, 1]])


def test_crop_and_magnification_by_hand():
    original = picture()
    kept = np.zeros((96, 96), bool)
    kept[10:34, 20:68] = True
    kept[10, 20] = False
    refined, box = magnify_regions(original, kept)
    # 48 x 24 pixels grow by max(96 / 48, 96 / 24) = 4.
    assert box == (20, 10, 68, 34) and refined.size == (192, 96)
    black = np.asarray(original).copy()
    black[~kept] = 0
    expected = Image.fromarray(black).crop(box).resize((192, 96), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(refined), np.asarray(expected))
    shown, same = magnify_regions(original, kept, blacken=False)
    whole = original.convert("RGB").crop(box).resize((192, 96), Image.Resampling.LANCZOS)
    assert same == box and np.array_equal(np.asarray(shown), np.asarray(whole))


def test_everything_kept_is_the_picture():
    original = picture()
    image = PlacedImage(row=0, index=0, grid=(8, 8), places=torch.arange(64))
    found = refine_picture(image, original, np.random.default_rng(0).random((8, 8)), 1.0, 3)
    assert found.kept.all() and np.array_equal(np.asarray(found.refined), np.asarray(original))


def test_enlargement_is_bilinear():
    line = stretch(np.array([[0.0, 1.0]]), (4, 1))
    assert np.allclose(line, [[0.0, 0.25, 0.75, 1.0]])


def test_pictures_are_recovered_exactly(tiny):
    _, processor = tiny
    given = [picture(1), picture(2)]
    inputs = inputs_of(processor, ["What?", "Where is it?"], given)
    for original, recovered in zip(given, recover_pictures(inputs, processor, "carve")):
        assert np.array_equal(np.asarray(original), np.asarray(recovered))


def test_a_centre_crop_hides_the_borders():
    from types import SimpleNamespace

    settings = SimpleNamespace(
        do_center_crop=True, do_resize=True, size={"shortest_edge": 50}, crop_size={"height": 50, "width": 50}
    )
    wide = Image.fromarray(np.arange(200 * 100 * 3, dtype=np.uint32).reshape(100, 200, 3).astype(np.uint8))
    seen = seen_part(wide, settings)
    assert seen.size == (100, 100)
    assert np.array_equal(np.asarray(seen), np.asarray(wide)[:, 50:150])
    settings.do_center_crop = False
    assert seen_part(wide, settings) is wide


def test_grids_of_non_square_images(zoo_model):
    zoo = zoo_model("qwen2_vl")
    inputs = zoo.make_inputs([Prompt(text_before=2, images=2, text_after=3, content=0)])
    visual = inputs["input_ids"] == zoo.image_token_id
    placed = place_images(zoo.model, inputs, visual, "carve")
    merge = zoo.model.config.vision_config.spatial_merge_size
    assert [image.grid for image in placed] == [
        (h // merge, w // merge) for _, h, w in inputs["image_grid_thw"].tolist()
    ]
    assert any(rows != columns for rows, columns in (image.grid for image in placed))
    assert torch.equal(torch.cat([image.places for image in placed]), visual[0].nonzero().flatten())


@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma", "mistral3"])
def test_grids_cover_all_visual_tokens(zoo_model, family):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs([Prompt(text_before=2, images=1, text_after=3, content=index) for index in range(2)])
    visual = inputs["input_ids"] == zoo.image_token_id
    placed = place_images(zoo.model, inputs, visual, "carve")
    assert [image.row for image in placed] == [0, 1]
    assert sum(image.grid[0] * image.grid[1] for image in placed) == int(visual.sum())


def test_tiled_images_are_refused(zoo_model):
    zoo = zoo_model("llava_next")
    with pytest.raises(ValueError, match=r"carve needs one grid.*tiles"):
        wrap(zoo.model, tiny_processor(), "carve", layers="1")
    assert_pristine(zoo.model)


def papers_map(model, processor, question, image, layers, steps):
    """Contrast map of one prompt: greedy answers without a cache, whole eager maps, as the release does it."""

    def look(text):
        inputs = inputs_of(processor, [text], [image])
        visual = inputs["input_ids"][0] == processor.image_token_id
        ids, rows = inputs["input_ids"], []
        for _ in range(steps):
            seen = {}

            def keep(layer, weights, seen=seen):
                seen[layer] = weights[0, :, -1].mean(0)[: len(visual)][visual]
                return weights

            with torch.no_grad(), eager_attention(model, weights=keep):
                scores = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[:, -1]
            rows.append(torch.stack([seen[layer] for layer in layers]))
            token = scores.argmax(-1, keepdim=True)
            ids = torch.cat((ids, token), 1)
            if int(token) == model.generation_config.eos_token_id:
                break
        return rows

    suffix = " Answer the question using a single word or phrase."
    asked, general = look(question + suffix), look("Write a general description of the image." + suffix)
    return sum((t + 1) * (a / (g + 1e-8)).sum(0) for t, (a, g) in enumerate(zip(asked, general)))


def test_maps_are_those_of_uncached_eager_passes(tiny):
    """In a padded batch of two questions, against each alone."""
    model, processor = tiny
    questions, pictures = ["Is there a dog?", "Is there a refrigerator in the image?"], [picture(0), picture(30)]
    inputs = inputs_of(processor, questions, pictures)
    with wrap(model, processor, "carve", layers="2-3", steps=4) as guard:
        guard.generate(**inputs, max_new_tokens=2, do_sample=False)
        found = guard.findings("carve").images
    for row in range(2):
        expected = papers_map(model, processor, questions[row], pictures[row], (2, 3), 4)
        assert np.allclose(found[row].contrast.ravel(), expected.numpy(), rtol=1e-3)


def test_one_step_ends_early_and_gives_the_first_steps_map(tiny):
    model, processor = tiny
    inputs = inputs_of(processor, ["Is there a dog?"], [picture()])
    calls = []
    hook = model.get_decoder().layers[3].register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        with wrap(model, processor, "carve", layers="1-2", steps=1) as guard:
            guard.generate(**inputs, max_new_tokens=1)
            found = guard.findings("carve").images[0]
    finally:
        hook.remove()
    assert len(calls) == 1, "only the answer itself reaches layer 3"
    expected = papers_map(model, processor, "Is there a dog?", picture(), (1, 2), 1)
    assert found.contrast.shape == (8, 8) and found.fused.shape == (96, 96)
    assert np.allclose(found.contrast.ravel(), expected.numpy(), rtol=1e-3)


def test_the_answer_is_that_of_the_refined_picture(tiny):
    model, processor = tiny
    question, original = "Is there a dog?", picture()
    inputs = inputs_of(processor, [question], [original])
    with wrap(model, processor, "carve", steps=2) as guard:
        found = guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        refined = guard.findings("carve").images[0].refined
    expected = model.generate(**inputs_of(processor, [question], [refined]), max_new_tokens=4, do_sample=False)
    assert torch.equal(found, expected)
    with wrap(model, processor, "carve", steps=2, outside="shown") as guard:
        guard.generate(**inputs, max_new_tokens=1, do_sample=False)
        image = guard.findings("carve").images[0]
    box = original.convert("RGB").crop(image.box).resize(image.refined.size, Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(image.refined), np.asarray(box))
    assert not np.array_equal(np.asarray(image.refined), np.asarray(refined))


def test_both_pictures(tiny):
    model, processor = tiny
    inputs = inputs_of(processor, ["Is there a dog?"], [picture()])
    with wrap(model, processor, "carve", steps=2, final_inputs="both") as guard:
        found = guard.generate(**inputs, max_new_tokens=2, do_sample=False)
        refined = guard.findings("carve").images[0].refined
    ids = inputs["input_ids"][0].tolist()
    last = max(index for index, token in enumerate(ids) if token == processor.image_token_id)
    doubled = torch.tensor([ids[: last + 1] + [processor.image_token_id] * 64 + ids[last + 1 :]])
    pixels = processor.image_processor([picture(), refined], return_tensors="pt")["pixel_values"]
    expected = model.generate(input_ids=doubled, pixel_values=pixels, max_new_tokens=2, do_sample=False)
    # The caller cuts the prompt off by the length of their own.
    assert torch.equal(found[:, : len(ids)], inputs["input_ids"])
    assert torch.equal(found[:, len(ids) :], expected[:, doubled.shape[1] :])
    with wrap(model, processor, "carve", steps=2, final_inputs="both"):
        beams = model.generate(
            **inputs, max_new_tokens=2, num_beams=2, num_return_sequences=2, return_dict_in_generate=True
        )
    assert beams.sequences.shape == (2, len(ids) + 2)
    assert torch.equal(beams.sequences[:, : len(ids)], inputs["input_ids"].expand(2, -1))


def test_given_pictures_keep_their_detail(tiny):
    model, processor = tiny
    large = picture(size=(384, 384))
    inputs = inputs_of(processor, ["Is there a dog?"], [large])
    with wrap(model, processor, "carve", steps=1) as guard:
        guard.generate(**inputs, images=[large], max_new_tokens=1)
        found = guard.findings("carve").images[0]
        assert found.fused.shape == (384, 384) and found.original.size == (384, 384)
        with pytest.raises(ValueError, match="2 pictures"):
            guard.generate(**inputs, images=[large, large], max_new_tokens=1)


def test_keeping_everything_is_the_identity_and_text_alone_is_left_alone(tiny):
    model, processor = tiny
    inputs = inputs_of(processor, ["Is there a dog?"], [picture()])
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with wrap(model, processor, "carve", share=1.0) as guard:
        assert torch.equal(guard.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
    text = processor(text="USER: hello ASSISTANT:", return_tensors="pt")
    with wrap(model, processor, "carve") as guard, pytest.warns(UserWarning, match="no visual token"):
        guard.generate(**text, max_new_tokens=1)


def test_it_needs_a_question_and_a_processor(tiny):
    model, processor = tiny
    with pytest.raises(ValueError, match="processor"):
        wrap(model, None, "carve")
    inputs = processor(text="USER: What is it? <image> ASSISTANT:", images=[picture()], return_tensors="pt")
    with wrap(model, processor, "carve") as guard, pytest.raises(ValueError, match="question behind the image"):
        guard.generate(**inputs, max_new_tokens=1)


def test_with_another_method(tiny):
    model, processor = tiny
    inputs = inputs_of(processor, ["Is there a dog?"], [picture()])
    with wrap(model, processor, "carve+zerotuning", **{"zerotuning.factor": 0.5, "carve.steps": 2}) as guard:
        found = guard.generate(**inputs, max_new_tokens=4, do_sample=False)
        refined = guard.findings("carve").images[0].refined
    with wrap(model, processor, "zerotuning", factor=0.5) as guard:
        again = inputs_of(processor, ["Is there a dog?"], [refined])
        assert torch.equal(guard.generate(**again, max_new_tokens=4, do_sample=False), found)
