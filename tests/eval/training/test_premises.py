"""What methods presume of a model, measured on the built-in one, which has no sinks."""

import pytest
import torch

from vlm_guard.builtin_model import builtin
from vlm_guard.eval.training.smol.premises import class_token_attention, magnified, sinks_by_layer
from vlm_guard.eval.training.targets import SMOL_TARGETS, verdicts

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small():
    return builtin()


def test_the_built_in_model_has_no_sinks_and_that_is_said(small):
    found = sinks_by_layer(*small, 3)
    assert found["rule"] is None and set(found["layers"]) == {2, 3, 4, 5}
    assert all(layer["sinks a prompt"] < 0.5 for layer in found["layers"].values())
    assert all(0 < layer["most drawn by one token"] < 0.3 for layer in found["layers"].values())


def test_class_token_attention_is_compared_between_objects_and_the_rest(small):
    found = class_token_attention(small[0], 6)
    assert set(found["layers"]) == set(range(5))
    for layer in found["layers"].values():
        # A share of the class token's attention on one of 64 patches.
        assert 0 < layer["on an object"] < 0.2 and 0 < layer["elsewhere"] < 0.2
        assert layer["ratio"] == pytest.approx(layer["on an object"] / layer["elsewhere"], rel=0.05)


def test_small_things_are_asked_about_at_full_view_and_magnified(small):
    found = magnified(small[0], small[1].tokenizer, 5)
    answers = [value for name, value in found.items() if name.startswith("yes")]
    assert len(answers) == 4 and all(0 <= value <= 100 for value in answers)


def test_the_targets_of_the_small_model_read_a_measurement():
    split = {
        "detailed": {"recall": 75.0, "chair_i": 12.0, "repeated": 6.0},
        "presence": {"valid": 100.0, "random": {"f1": 95.0}, "popular": {"f1": 90.0}, "adversarial": {"f1": 91.0}},
    }
    leading = {"accuracy_when_helped": 90.0, "accuracy_when_misled": 80.0}
    found = {
        item["target"]: item["met"]
        for item in verdicts({"common": split, "broken": split, "leading": leading}, SMOL_TARGETS)
    }
    assert found["common: recall"] and found["leading questions move accuracy"]
    assert not found["common: repeated mentions"] and not found["common: F1 popular above adversarial"]
    assert not found["broken: CHAIR_i"]
