"""The model table says what the tests really run."""

import pytest

from vlm_guard import wrap
from vlm_guard.architecture import REFUSED
from vlm_guard.model_table import TESTED, model_rows, models_markdown
from zoo import build, families


def test_every_tested_row_is_in_the_zoo_and_says_the_truth():
    for row in TESTED:
        backbones = []
        for name in row.zoo:
            assert name in families()
            config = build(name).config
            assert config.model_type == row.model_type
            backbones.append(config.get_text_config(decoder=True).model_type)
        assert tuple(backbones) == row.text_models


def test_every_zoo_family_is_in_the_table():
    listed = {name for row in TESTED for name in row.zoo}
    assert set(families()) - listed == {"git", "mllama", "blip_2", "instructblip"}


@pytest.mark.parametrize("family", ["git", "mllama", "blip_2", "instructblip"])
def test_refused_families_say_why(family):
    model = build(family).model
    with pytest.raises(ValueError, match="cannot be guarded"):
        wrap(model, None, "none")


def test_visual_mask_equals_the_models_own(zoo_model):
    from vlm_guard.architecture import describe_architecture
    from vlm_guard.visual_tokens import visual_mask
    from zoo import Prompt

    for row in TESTED:
        for name in row.zoo:
            zoo = zoo_model(name)
            prompts = zoo.adapt([Prompt(text_before=3, images=1), Prompt(text_before=6, images=2)])
            inputs = zoo.make_inputs(prompts)
            mask = visual_mask(inputs["input_ids"], describe_architecture(zoo.model).visual_token_ids)
            assert (mask == zoo.expected_visual_mask(inputs)).all(), name
            assert mask.sum(-1).tolist() == zoo.visual_tokens(prompts)


def test_tables_print():
    assert {row["model_type"] for row in model_rows()} >= {"llava", "qwen3_vl", *REFUSED}
    assert models_markdown().count("\n") == len(model_rows()) + 2
