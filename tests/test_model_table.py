"""The model table says what the tests really run, and the entries behind it are what the models are."""

import re
from pathlib import Path

import method_cases
import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlm_guard import wrap
from vlm_guard.families.architecture import describe_architecture
from vlm_guard.families.family import architecture_entries, entry_of
from vlm_guard.families.table import CHECKED, REFUSED, TESTED, UNBUILT, model_rows, models_markdown, models_summary
from vlm_guard.method.registry import method_names
from vlm_guard.method.visual_tokens import visual_mask
from zoo import Prompt, build, families

REFUSED_ZOO = {"git"}
WORKING = [name for name in families() if name not in REFUSED_ZOO]


def test_every_tested_entry_is_in_the_zoo_and_says_the_truth():
    for entry in architecture_entries():
        backbones = []
        for name in entry.zoo:
            assert name in families()
            config = build(name).config
            assert config.model_type in entry.model_types
            backbones.append(config.get_text_config(decoder=True).model_type)
        assert tuple(backbones) == entry.text_models
        assert not (entry.refused and entry.zoo)


def test_every_zoo_family_is_in_the_table():
    listed = {name for entry in architecture_entries() for name in entry.zoo}
    assert set(families()) - listed == REFUSED_ZOO


@pytest.mark.parametrize("family", sorted(REFUSED_ZOO))
def test_refused_families_say_why(family):
    model = build(family).model
    with pytest.raises(ValueError, match=r"cannot be guarded.*" + entry_of(model.config.model_type).refused[:20]):
        wrap(model, None, "none")


@pytest.mark.parametrize("family", WORKING)
def test_visual_mask_equals_the_models_own(zoo_model, family):
    zoo = zoo_model(family)
    prompts = zoo.adapt([Prompt(text_before=3, images=1), Prompt(text_before=6, images=2)])
    inputs = zoo.make_inputs(prompts)
    token_ids = describe_architecture(zoo.model).visual_token_ids
    mask = visual_mask(inputs["input_ids"], token_ids)
    assert torch.equal(mask, zoo.expected_visual_mask(inputs))
    assert mask.sum(-1).tolist() == zoo.visual_tokens(prompts)
    if zoo.family.video_run is not None:
        inputs = zoo.make_inputs([Prompt(images=1, videos=1), Prompt(text_before=7, images=0, videos=2)])
        assert torch.equal(visual_mask(inputs["input_ids"], token_ids), zoo.expected_visual_mask(inputs))


def test_tables_print():
    rows = model_rows()
    assert {row["status"] for row in rows} == {TESTED, CHECKED, UNBUILT, REFUSED}
    types = [row["model_type"] for row in rows]
    assert len(set(types)) == len(types) and {"llava", "qwen3_vl", "git", "florence2"} <= set(types)
    assert models_markdown().count("\n") == len(rows) + 2
    count = sum(row["status"] == TESTED for row in rows)
    assert models_summary().startswith(f"{count} model types are tested with pictures: Aria, ")


def test_every_family_of_the_mapping_has_a_row():
    listed = {row["model_type"] for row in model_rows()}
    missing = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - listed
    assert not missing, f"give these families an entry (docs/new-family.md): {sorted(missing)}"


@pytest.mark.parametrize(
    "model_type",
    [
        *("gemma4", "glm46v", "glm4v_moe", "qwen3_5_moe", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "lfm2_vl"),
        *("vipllava", "minicpmv4_6", "aria", "video_llama_3", "lighton_ocr", "minimax_m3_vl"),
    ],
)
def test_families_that_people_use_are_tested_with_pictures(model_type):
    assert entry_of(model_type).zoo


def test_the_page_says_which_families_refuse_a_method():
    page = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    section = page.partition("## Methods that some families refuse")[2]
    written = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            methods, families_named, _ = (cell.strip() for cell in line.strip("|").split("|"))
            named = set(re.findall(r"`([^`]+)`", families_named))
            written |= dict.fromkeys(re.findall(r"`([^`]+)`", methods), (families_named.startswith("all but"), named))
    # CARVE is refused nowhere; the zoo has only some processors. OPERA answers by a search of its own.
    for name in set(method_names()) - {"carve", "opera"}:
        works = {method_cases.config_of(zoo).model_type for zoo in WORKING if method_cases.supports(name, zoo)}
        refused = {method_cases.config_of(zoo).model_type for zoo in WORKING if not method_cases.supports(name, zoo)}
        all_but, named = written.get(name, (False, set()))
        assert named == (works if all_but else refused), name
