import json

import pytest
import torch
from PIL import Image

from vlm_guard.builtin_model import builtin
from vlm_guard.eval.attention.facts import PROMPT, attention_facts, measure_attention
from vlm_guard.eval.attention.record import record_attention
from vlm_guard.eval.run.prompting import find_template
from vlm_guard.eval.scenes.render import render


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return builtin()


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(render("broken", 8, index).pixels) for index in range(2)]


def test_record_agrees_with_transformers_own_eager_attention(loaded, pictures):
    model, processor = loaded
    before = model.config.text_config._attn_implementation
    inputs = dict(find_template(processor).encode(processor, pictures[:1], [PROMPT]))
    record = record_attention(model, inputs)
    assert model.config.text_config._attn_implementation == before
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            expected = model(**inputs, output_attentions=True)
    finally:
        model.set_attn_implementation({"text_config": before})
    assert len(record.weights) == len(expected.attentions)
    for mine, theirs in zip(record.weights, expected.attentions):
        assert torch.allclose(mine, theirs[0], atol=1e-5)
        assert mine.triu(1).abs().max() == 0
    assert record.norms.shape == (len(record.weights) + 1, inputs["input_ids"].shape[1])


def test_facts_add_up(loaded, pictures):
    facts = attention_facts(*loaded, pictures)
    json.dumps(facts)
    layers, heads = facts["layers"], facts["heads"]
    for layer in range(layers):
        names = ("image_share", "first_token_share", "prompt_text_share", "answer_share")
        assert sum(facts[name][layer] for name in names) == pytest.approx(1, abs=0.002)
        mean = sum(facts["image_share_by_head"][layer]) / heads
        assert mean == pytest.approx(facts["image_share"][layer], abs=0.001)
    assert len(facts["image_share_by_part"][0]) == 4
    assert len(facts["first_token_norm"]) == layers + 1
    assert min(facts["largest_visual_ratio"]) >= 1
    spread = facts["image_dependence_spread"]
    assert 0 < spread["least"] < spread["median"] < spread["most"]


def test_measure_writes_numbers_and_plots(loaded, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("VLM_GUARD_CACHE", str(tmp_path / "cache"))
    facts = measure_attention(*loaded, "scenes:common:4", 1, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "attention.json").read_text()) == facts
    assert len(list((tmp_path / "out").glob("attention_*.png"))) == 3


def test_nothing_to_look_at_is_an_error(loaded):
    with pytest.raises(ValueError, match="none were given"):
        attention_facts(*loaded, [])
