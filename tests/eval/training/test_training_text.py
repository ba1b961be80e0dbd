import numpy as np
import pytest
import torch

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.eval.scenes.categories import NAMES
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import render
from vlm_guard.eval.training import questions
from vlm_guard.eval.training.batches import attention_mask
from vlm_guard.eval.training.caption_scores import mentions, score_captions
from vlm_guard.eval.training.losses import _repeat_loss
from vlm_guard.eval.training.presence import presence_questions, read_yes_no, score_presence

FREQUENCY = np.ones(80, np.int64)


def test_answers_are_true():
    draws = Draws(1)
    yes = no = 0
    for index in range(80):
        scene = render("common", 4, index)
        objects = list(scene.objects)
        for item in questions.exchanges(draws, scene.scene_type, objects, FREQUENCY):
            if item.kind == "yes_no":
                named = [name for name in mentions(item.question)]
                yes, no = yes + (item.answer == "Yes"), no + (item.answer == "No")
                if item.answer == "Yes":
                    assert set(named) <= scene.present
                elif named:
                    assert not set(named) & scene.present
            elif item.kind == "caption":
                assert set(mentions(item.answer)) <= scene.present
    assert yes > 200 and abs(yes - no) < 0.1 * yes


def test_mirrored_scene_exchanges_sides():
    from vlm_guard.eval.scenes.captions import groups
    from vlm_guard.eval.training.scene_store import SceneStore

    objects = np.full((1, 12, 6), -1, np.int16)
    objects[0, 0] = (3, 5, 10, 20, 20, 300)
    store = SceneStore(
        pixels=np.zeros((1, 96, 96, 3), np.uint8),
        patches=np.zeros((1, 8, 8), np.uint8),
        scene_types=np.zeros(1, np.uint8),
        objects=objects,
    )
    assert groups(store.objects_of(0))[0].side == "left"
    assert groups(store.objects_of(0, mirrored=True))[0].side == "right"


def test_leading_questions_are_mostly_right_but_not_always():
    draws = Draws(2)
    right = {"yes": [], "no": []}
    for number in range(6000):
        present = number % 2 == 0
        text = questions.presence_exchange(draws, "dog", present).question
        for suggested, truths in right.items():
            if f"I think the answer is {suggested}." in text:
                truths.append(present == (suggested == "yes"))
    for truths in right.values():
        assert len(truths) > 60 and 0.6 < sum(truths) / len(truths) < 0.9


def test_unseen_nouns_stay_unseen():
    from vlm_guard.eval.training.behaviour_measures import UNSEEN_NOUNS

    assert not set(UNSEEN_NOUNS) & set(questions.UNKNOWN)
    assert not set(UNSEEN_NOUNS) & set(NAMES) and not set(questions.UNKNOWN) & set(NAMES)


def test_attention_mask_separates_exchanges():
    prefix, image = 2, 64
    blocks = torch.tensor([[0] * (prefix + image) + [1, 1, 2, 2, -1]] * 2)
    mask = attention_mask(blocks, torch.tensor([False, True]), prefix)[:, 0]
    start = prefix + image
    assert mask.shape == (2, start + 5, start + 5)
    assert mask[0, start + 1, : start + 2].all() and not mask[0, start + 1, start + 2 :].any()
    assert mask[0, start + 3, :start].all() and not mask[0, start + 3, start : start + 2].any()
    # A hidden picture: the exchange sees the words before it only; the prefix itself is unchanged.
    assert mask[1, start + 3, :prefix].all() and not mask[1, start + 3, prefix:start].any()
    assert mask[1, start - 1, prefix:start].all()
    assert mask.diagonal(dim1=1, dim2=2).all()


def test_repeat_loss_counts_only_what_the_same_caption_named_before():
    words = torch.tensor([10, 11, 12])
    targets = torch.tensor([10, 5, 11, 10, 5])
    exchange = torch.tensor([0, 0, 0, 1, 1])
    scores = torch.full((5, 20), -30.0)
    scores[torch.arange(5), [10, 10, 10, 10, 11]] = 30.0
    # Positions 1 and 2 repeat "10"; position 3 begins another caption; position 4 names what was not named before.
    loss = _repeat_loss(scores, targets, exchange, words)
    assert loss.item() == pytest.approx(2 * -np.log(1e-4) / 5, rel=1e-3)


def test_caption_scores_by_hand():
    scene = render("common", 4, 0)
    present = [NAMES[category] for category in sorted(scene.present)]
    absent = next(name for name in NAMES if name not in present)
    caption = f"The image shows a {present[0]} and a {absent}. There is also a {present[0]}."
    scores = score_captions([caption], [scene])
    assert scores["chair_i"] == 50 and scores["chair_s"] == 100
    assert scores["recall"] == pytest.approx(100 / len(present), abs=0.01)
    assert scores["repeated"] == pytest.approx(100 / 3, abs=0.01)
    assert scores["hallucinated_by_order"][:2] == [0, 100]


def test_mentions_prefer_long_names():
    found = [NAMES[k] for k in mentions("Two hot dogs, a teddy bear and three people near a Dog")]
    assert found == ["hot dog", "teddy bear", "person", "dog"]


def test_presence_questions_and_scores():
    scenes = [render("common", 4, index) for index in range(30)]
    asked = presence_questions(scenes, 1)
    for question in asked:
        assert (question.category in scenes[question.scene].present) == (question.kind == "present")
    perfect = score_presence(asked, ["Yes" if q.kind == "present" else "No." for q in asked])
    assert perfect["valid"] == 100 and perfect["adversarial"] == {"accuracy": 100, "f1": 100, "yes_ratio": 50}
    credulous = score_presence(asked, ["yes"] * len(asked))
    assert credulous["random"]["yes_ratio"] == 100 and credulous["random"]["accuracy"] == 50
    assert score_presence(asked, ["A dog"] * len(asked))["valid"] == 0
    assert [read_yes_no(text) for text in ("Yes, it is", "no", "Nothing")] == [True, False, None]


def test_tokenizer_of_the_built_in_model_encodes_any_text():
    from transformers import AutoTokenizer

    from vlm_guard.eval.training.tokenizer import encode

    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_DIR)
    for text in ("Is there a unicorn in the image?", "Ünïcödé 漢字 42!"):
        assert tokenizer.decode(encode(tokenizer, text)) == text
