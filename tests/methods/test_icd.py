"""ICD: where the disturbance goes in plain and chat prompts, and that the branch reads it."""

import pytest

from vlm_guard import wrap
from vlm_guard.methods.icd import DISTURBANCES, ICD
from zoo import Prompt
from zoo.prompts import BOS, IMAGE, IMAGE_START

START, END = 8, 9  # special tokens that open and close a turn


class Tokenizer:
    """Ids 0 to 9 are special."""

    all_special_ids = list(range(10))
    bos_token_id = BOS


@pytest.mark.parametrize(
    ("place", "ids", "position"),
    [
        ("auto", [BOS, 50, 51, IMAGE, IMAGE, 52], 1),  # words after BOS: where LLaVA's system message stands
        ("auto", [BOS, IMAGE, IMAGE, 52], 1),
        ("auto", [START, 50, END, START, 51, IMAGE_START, IMAGE, 52], 5),  # roles: in front of the image's marker
        ("auto", [BOS, START, 50, IMAGE, 52], 3),
        ("start", [START, 50, IMAGE, 52], 0),
        ("user", [BOS, 50, IMAGE, 52], 2),
        ("user", [BOS, 50, 52], 1),  # no image
    ],
)
def test_place_of_the_disturbance(place, ids, position):
    assert ICD(place=place)._position(ids, Tokenizer(), (IMAGE,), frozenset({IMAGE_START})) == position


@pytest.mark.parametrize("name", DISTURBANCES)
def test_every_disturbance_changes_the_answer(zoo_model, zoo_processor, name):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs([Prompt()])
    record = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2, "do_sample": False}
    plain = zoo.model.generate(**inputs, **record)
    with wrap(zoo.model, zoo_processor("llava"), "icd", disturbance=name) as guard:
        disturbed = guard.generate(**inputs, **record)
    assert float((plain.logits[0] - disturbed.logits[0]).abs().max()) > 1e-3


def test_it_needs_a_processor(zoo_model):
    with pytest.raises(ValueError, match="processor"):
        wrap(zoo_model("llava").model, None, "icd")
