"""`auto`, the method of `wrap` without one: the profile's choice, or a default that no family refuses."""

import pytest
import torch
from method_cases import FAMILIES

from vlm_guard import cli, wrap
from vlm_guard.families.profiles import Fact, Profile
from vlm_guard.method.registry import method_names, resolve_methods
from zoo import UNEQUAL_PROMPTS, assert_pristine

STEPS = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def profile(value):
    return Profile(name="mine", match={}, facts={"auto": Fact(value=value, source="calibrated")})


@pytest.mark.parametrize("family", [*FAMILIES, "mllama"])
def test_every_family_takes_the_default_and_it_acts(zoo_model, family):
    zoo = zoo_model(family)
    inputs = zoo.make_inputs(zoo.adapt(UNEQUAL_PROMPTS[:1]))
    with torch.no_grad():
        plain = zoo.model.generate(**inputs, **STEPS)
        with wrap(zoo.model) as guard:
            assert guard.describe().startswith("pai:gain=0.3" if family != "mllama" else "pai:gain=0")
            found = guard.generate(**inputs, **STEPS)
    assert found.logits[0].isfinite().all() and not torch.equal(found.logits[0], plain.logits[0])
    assert_pristine(zoo.model)


def test_the_profiles_choice_comes_first(zoo_model):
    model = zoo_model("llava").model
    with wrap(model, None, "auto", profile=profile("m3id:forgetting=0.5")) as guard:
        assert guard.describe() == "m3id:forgetting=0.5" and guard.methods[0].method.forgetting == 0.5
    with wrap(model, None, "auto", profile=profile("none")) as guard:
        assert guard.describe() == "none"
    with wrap(model, None, "auto+m3id", profile=profile("pai:gain=0.3,guidance=1")) as guard:
        assert guard.describe() == "pai:gain=0.3,guidance=1+m3id" and guard.methods[0].method.gain == 0.3


def test_it_is_a_call_s_method_too(zoo_model):
    zoo = zoo_model("llava")
    inputs = zoo.make_inputs(UNEQUAL_PROMPTS[:1])
    with torch.no_grad(), wrap(zoo.model, None, "none") as guard:
        called = guard.generate(**inputs, **STEPS, method="auto")
    with torch.no_grad(), wrap(zoo.model, None, "pai:gain=0.3,guidance=1") as guard:
        named = guard.generate(**inputs, **STEPS)
    assert torch.equal(called.logits[0], named.logits[0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("mine.py:strength=1", "only known methods"),
        ("my.module:Mine", "only known methods"),
        ("auto", "only known methods"),
        ("pa", "unknown method"),
        ("pai:gain=7", "allowed: 0.0 to 1.0"),
        (3, "must be a line"),
    ],
)
def test_a_profile_can_choose_known_methods_only(zoo_model, value, words):
    model = zoo_model("llava").model
    with pytest.raises(ValueError, match=words):
        wrap(model, None, "auto", profile=profile(value))
    assert_pristine(model)


def test_a_method_named_beside_its_choice_is_refused(zoo_model):
    with pytest.raises(ValueError, match="name it once"):
        wrap(zoo_model("llava").model, None, "auto+pai")


def test_it_has_no_options_and_no_other_method_may_take_its_name():
    with pytest.raises(ValueError, match="has no option 'gain'"):
        resolve_methods("auto:gain=1")
    assert "auto" not in method_names()


def test_the_command_line_says_what_it_stands_for(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", "builtin"])
    assert ended.value.code == 0
    assert "auto stands for" in capsys.readouterr().out
