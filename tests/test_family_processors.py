"""Every family with its own processor class: a picture goes in, and the guard acts on the tokens that come of it."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vlm_guard import wrap
from vlm_guard.families.processor_needs import why_unusable
from vlm_guard.method.visual_tokens import visual_mask
from zoo import families
from zoo.entry import FAMILIES, build, build_family
from zoo.processor_recipes import RECIPES, SAME, lacking, read_picture, real_processor, recipe_of

torch.set_num_threads(1)
# Fuyu's processor cuts off the first id, which only its own tokenizer puts there; GIT has no visual tokens; the
# thinkers are parts of whole Omni models, which have the processor.
WITHOUT = {"fuyu", "git", "qwen2_5_omni_thinker", "qwen3_omni_thinker"}
# Attention on pictures means something else there, see tests/test_cross_attention.py.
NO_ATTENTION_EDITS = {"mllama"}


def test_every_family_has_a_recipe():
    assert {*RECIPES, *SAME} == {*families()} - WITHOUT


def built(family):
    """The zoo's model, or a larger one where the recipe says so."""
    model = recipe_of(family).model
    return build(family) if model is None else build_family(replace(FAMILIES[family], model=model))


@pytest.mark.parametrize("family", sorted({*RECIPES, *SAME}))
def test_a_picture_through_the_familys_own_processor(family):
    reason = lacking(family)
    if reason:
        pytest.skip(f"its processor needs {reason}")
    processor, zoo = real_processor(family), built(family)
    picture = Image.effect_noise((30, 22), 64).convert("RGB")
    inputs = read_picture(family, processor, picture, "is there a dog ?").to(torch.float32)
    inputs.pop("labels", None)

    def logits(method):
        settings = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with wrap(zoo.model, processor, method) as guard, torch.no_grad():
            visual = visual_mask(inputs["input_ids"], guard.target.architecture.visual_token_ids)
            assert bool(visual.any()) or family == "mllama"
            return torch.stack(zoo.model.generate(**inputs, **settings).logits)

    plain = logits("none")
    assert torch.isfinite(plain).all()
    neutral, acting = "vcd:strength=0,plausibility=0", ["vcd:plausibility=0", "icd:plausibility=0"]
    if family not in NO_ATTENTION_EDITS:
        neutral, acting = "pai:gain=0,guidance=1,layers=all", ["pai:gain=0.5,guidance=1,layers=all", *acting]
    assert torch.equal(logits(neutral), plain)
    for method in acting:
        changed = logits(method)
        assert torch.isfinite(changed).all() and not torch.equal(changed, plain), method


def test_torchvision_is_what_is_lacking_where_it_is():
    assert bool(lacking("qwen2_vl")) == (why_unusable("torchvision") is not None)
    assert not lacking("llava")
