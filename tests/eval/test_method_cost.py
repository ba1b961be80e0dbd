"""The measurement of what methods cost, on a model of no size."""

import json

import pytest
import torch

from vlm_guard.eval import method_cost
from vlm_guard.random_models import DecoderShape

torch.set_num_threads(1)

TINY = DecoderShape(hidden=32, layers=3, heads=2, kv_heads=2, head_dim=16, intermediate=48, vocab=64, visual_tokens=4)


def test_every_method_is_timed_against_plain_generation_and_written():
    result = method_cost.measure_methods(["m3id", "pai"], shape=TINY, batch=2, new_tokens=4, rounds=2, prompt_tokens=6)
    assert set(result["methods"]) == {"plain", "m3id", "pai"}
    assert result["methods"]["plain"]["prefill_ratio"] == result["methods"]["plain"]["per_token_ratio"] == 1.0
    assert all(len(row["prefill_seconds"]) == 2 for row in result["methods"].values())
    assert all(value > 0 for row in result["methods"].values() for value in row["per_token_seconds"])
    assert json.loads(json.dumps(result)) == result


def test_options_reach_their_method():
    with pytest.raises(ValueError, match="forgetting"):
        method_cost.measure_methods(["m3id"], shape=TINY, rounds=1, new_tokens=3, options={"m3id.forgetting": 9.0})


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        method_cost.measure_methods(["m3id"], shape=TINY, new_tokens=2)
