"""Tied embeddings are told by the weights, in every family, and also where the weights cannot be compared."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from vlm_guard.families.tied_embeddings import has_tied_embeddings
from zoo import build, families

torch.set_num_threads(1)


@pytest.mark.parametrize("family", families())
def test_every_family_is_told_by_what_a_change_of_the_weights_does(zoo_model, family):
    """Writing into the input embeddings changes the output embeddings exactly where both are one."""
    model = zoo_model(family).model
    entering, leaving = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    before = leaving[0, 0].item()
    kept = entering[0, 0].item()
    with torch.no_grad():
        entering[0, 0] = kept + 1
        changed = leaving[0, 0].item() != before
        entering[0, 0] = kept
    assert has_tied_embeddings(model) is changed


# Families whose text configuration says nothing, and families whose two configurations contradict each other.
@pytest.mark.parametrize(("family", "tied"), [("qwen2_vl", False), ("qwen2_5_vl", True), ("glm4v", False)])
def test_families_whose_text_configuration_has_no_such_field(zoo_model, family, tied):
    model = zoo_model(family).model
    assert not hasattr(model.config.get_text_config(decoder=True), "tie_word_embeddings")
    assert has_tied_embeddings(model) is tied


@pytest.mark.parametrize("family", ["internvl", "mistral3", "ovis2", "deepseek_vl", "janus"])
def test_families_whose_text_configuration_contradicts(zoo_model, family):
    model = zoo_model(family).model
    assert model.config.get_text_config(decoder=True).tie_word_embeddings is False
    assert has_tied_embeddings(model)


@pytest.mark.parametrize(("family", "tied"), [("llava", False), ("internvl", True)])
def test_weights_that_are_offloaded_to_disk(tmp_path: Path, family, tied):
    build(family).model.save_pretrained(tmp_path / "model")
    folders = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu"}
    devices = folders | {"model.language_model": "disk", "lm_head": "disk"}
    loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map=devices, offload_folder=tmp_path / "offloaded"
    )
    assert loaded.get_input_embeddings().weight.device.type == "meta"
    assert has_tied_embeddings(loaded) is tied


@pytest.mark.parametrize(("family", "tied"), [("llava", False), ("internvl", True)])
def test_output_embeddings_that_are_stored_in_another_form(family, tied):
    model = build(family).model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to(torch.bfloat16))
    assert has_tied_embeddings(model) is tied


def test_a_checkpoint_with_other_output_embeddings_than_its_configuration_says(tmp_path: Path):
    """transformers then keeps both weights, whatever the configuration says."""
    model = build("internvl").model
    untied = copy.deepcopy(model)
    untied.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    assert not has_tied_embeddings(untied)
    untied.save_pretrained(tmp_path)
    assert any(name.endswith("lm_head.weight") for name in load_file(tmp_path / "model.safetensors"))
    assert not has_tied_embeddings(AutoModelForImageTextToText.from_pretrained(tmp_path))
