"""Left and right: labels at the asked word, the loss on visual tokens, and how absent things are asked about."""

import numpy as np
import torch
from transformers import AutoTokenizer

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.eval.scenes.captions import groups
from vlm_guard.eval.scenes.categories import NAMES
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import GRID, render
from vlm_guard.eval.training import questions
from vlm_guard.eval.training.batches import SceneBatches
from vlm_guard.eval.training.losses import side_loss
from vlm_guard.eval.training.model import PATCHES, new_model
from vlm_guard.eval.training.recipe import Recipe
from vlm_guard.eval.training.scene_store import build_store
from vlm_guard.eval.training.tokenizer import category_tokens

torch.set_num_threads(1)


def test_labels_say_where_the_asked_thing_is(tmp_path):
    """Every label of the side agrees with the scene; things that are absent or several get none."""
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_DIR)
    store = build_store(tmp_path, 24, workers=1)
    batches = SceneBatches(store, Recipe(image_drop=0.0), 24, 0, tokenizer)
    places = np.arange(24)
    batch = batches._batch(places, Draws(5))
    by_token = {token: category for category, token in enumerate(category_tokens(tokenizer))}
    # The batch mirrors some scenes; its pixels tell which.
    mirrored = [not np.array_equal(batch.pixels[row].numpy(), store.pixels[row]) for row in places]
    assert any(mirrored) and not all(mirrored)
    labelled = 0
    for row in places:
        found = {group.category: group for group in groups(store.objects_of(row, mirrored[row]))}
        for column in (batch.side[row] >= 0).nonzero().flatten().tolist():
            group = found[by_token[int(batch.ids[row, column])]]
            assert group.count == 1
            assert (batch.side[row, column] == 1) == (group.side == "left")
            labelled += 1
        asked = (batch.presence[row] >= 0).nonzero().flatten().tolist()
        for column in asked:
            category = by_token[int(batch.ids[row, column])]
            assert (batch.presence[row, column] == 1) == (category in found)
    assert labelled > 24


def test_side_loss_reads_the_half_of_the_picture():
    model = new_model(0)
    sides = torch.tensor([100, 200])
    rows = model.get_input_embeddings().weight[sides].detach()
    direction = rows[0] - rows[1]
    left = torch.arange(PATCHES) % GRID < GRID // 2
    visual = torch.where(left[:, None], 100 * direction, -100 * direction)[None]
    assert side_loss(model, visual, sides) < 1e-3
    assert side_loss(model, -visual, sides) > 5
    assert torch.allclose(side_loss(model, 0 * visual, sides), torch.tensor(2.0).log())


def test_absent_things_asked_about_are_mostly_rare():
    frequency = np.arange(len(NAMES))
    present = {0, 1, 79}
    asked = [questions.absent_category(Draws(7, number), present, frequency, 70) for number in range(2000)]
    assert not present & set(asked)
    rare = sum(category < 40 for category in asked) / len(asked)
    # 70 % are drawn from the rarer half and half of the others fall into it by chance.
    assert 0.80 < rare < 0.90


def test_questions_about_present_things_carry_their_side():
    scene = render("common", 3, 1)
    even = np.ones(len(NAMES), np.int64)
    items = questions.exchanges(Draws(1), scene.scene_type, list(scene.objects), even)
    sides = {group.category: group.side for group in groups(scene.objects) if group.count == 1}
    asked = [item for item in items if item.kind == "yes_no" and item.answer == "Yes"]
    assert asked and {item.side for item in asked} <= {*sides.values(), None}
    assert all(item.side is None for item in items if item.answer == "No")
