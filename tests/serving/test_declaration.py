"""What a server offers, what requests may name, and what is refused at start."""

import json
import os
import subprocess
import sys

import pytest

from vlm_guard.method.registry import method_names
from vlm_guard.serving.vllm.declaration import ENVIRONMENT, Declaration
from vlm_guard.serving.vllm.grounding.lens_keys import LENS, lens_key
from vlm_guard.serving.vllm.start import engine
from vlm_guard.serving.vllm.start.devices import DEVICES
from vlm_guard.serving.vllm.start.engine import RUNNER, server_flags
from vlm_guard.serving.vllm.versions import refuse_untested

SERVED = {
    "act",
    "gift",
    "hgai",
    "icd",
    "lqcd",
    "m3id",
    "pai",
    "ritual",
    "softpag",
    "spin",
    "vaf",
    "var",
    "vcd",
    "vhr",
    "zerotuning",
}
UNSERVED = {
    "avisc": "a second time",
    "only": "hidden states",
    "revisit": "hidden states",
    "sid": "in one step",
    "vista": "a second time",
    "vti": "vision tower",
    "carve": "rewrites the picture",
    "deco": "early layers",
    "dola": "early layers",
    "flb": "first token",
    "iri": "early layers|hidden states|vision tower|a second time",
    "none": "",
    "opera": "whole answer",
    "paint": "vision tower",
    "uncertainty": "vision tower|gradients",
}


def test_every_method_is_served_or_refused():
    assert set(method_names()) == SERVED | set(UNSERVED)


@pytest.mark.parametrize("name", sorted(SERVED))
def test_a_served_method_is_offered_under_its_name(name):
    assert list(Declaration.read(name).offers) == [name]


@pytest.mark.parametrize("name", sorted({*UNSERVED} - {"none"}))
def test_what_cannot_be_served_is_refused_by_name_with_the_reason(name):
    with pytest.raises(ValueError, match=f"{name} cannot be served inside vLLM: .*({UNSERVED[name]})"):
        Declaration.read(f"pai;{name}")


def test_names_settings_and_combinations():
    declared = Declaration.read(
        " pai ; m3id;strict=pai:gain=0.5,guidance=1;both=zerotuning:factor=0.6+m3id ;", "strict"
    )
    assert list(declared.offers) == ["pai", "m3id", "strict", "both"]
    assert declared.offers["strict"].methods[0].gain == 0.5
    assert [method.name for method in declared.offers["both"].methods] == ["zerotuning", "m3id"]
    assert declared.default == "strict"
    assert Declaration.read("pai:gain=0.4").offers["pai:gain=0.4"].methods[0].gain == 0.4


@pytest.mark.parametrize(
    ("text", "default", "reason"),
    [
        ("", None, "names no method"),
        ("pai;pai", None, "twice"),
        ("none=pai", None, "plain model"),
        ("pia", None, "unknown method 'pia'"),
        ("pai:gain=9", None, "option gain is 9"),
        ("pai+m3id", None, "all contrast"),
        ("act+m3id", None, "in one step"),
        ("vhr+m3id", None, "in one step"),
        ("vhr+spin", None, "a reading of its own"),
        ("pai", "strict", "not offered"),
        ("pai:gate=entropy>0.5", None, "its gate"),
    ],
)
def test_wrong_declarations_are_refused(text, default, reason):
    with pytest.raises(ValueError, match=reason):
        Declaration.read(text, default)


def test_scores_of_mentions_are_offered_beside_methods_or_alone():
    assert Declaration.read("pai", None, " self_check , lens,lens").grounding == ("self_check", "lens")
    alone = Declaration.read("", None, "lens")
    assert not alone.offers and alone.observes and alone.describe()["grounding"] == ["lens"]
    assert not Declaration.read("pai", None, "self_check").observes
    for wrong in ("logp", "lens;self_check"):
        with pytest.raises(ValueError, match="is not measured here; allowed: lens, self_check"):
            Declaration.read("pai", None, wrong)


def test_only_this_project_may_have_hidden_states_kept():
    declared = Declaration.read("pai", None, "lens")
    with lens_key() as key:
        declared.check({"vlm_guard": "none", LENS: key})
        for wrong in ({LENS: "mine"}, {LENS: [key]}, {LENS: key, "vlm_guard_grids": []}):
            with pytest.raises(ValueError, match="is not an argument of requests"):
                declared.check(wrong)
    with pytest.raises(ValueError, match="is not an argument of requests"):
        declared.check({LENS: key})


def test_it_travels_to_other_processes():
    declared = Declaration.read("pai;strict=pai:gain=0.5", "strict", "lens,self_check")
    environment = {}
    declared.write(environment)
    again = Declaration.of_environment(environment)
    assert again == declared and again.default == "strict"
    assert Declaration.of_environment({}) is None
    assert list(Declaration.of_environment({ENVIRONMENT: "pai;m3id"}).offers) == ["pai", "m3id"]


def test_requests_name_an_offer_the_default_or_the_plain_model():
    declared = Declaration.read("pai;m3id", "m3id")
    assert declared.asked(None).name == "m3id" and declared.asked({}).name == "m3id"
    assert declared.asked({"vlm_guard": "pai"}).name == "pai"
    assert declared.asked({"vlm_guard": "none"}) is None
    assert Declaration.read("pai").asked({"another": 1}) is None


@pytest.mark.parametrize(
    "given",
    [
        {"vlm_guard": "vcd"},
        {"vlm_guard": "pai:gain=0.9"},
        {"vlm_guard": {"method": "pai"}},
        {"vlm_guard": None},
        {"vlm_guard": ["pai"]},
        {"vlm_guard": 1},
        {"vlm_guard_pair": "x"},
        {"vlm_guard_shadow": True, "vlm_guard": "pai"},
        {"vlm_guard": "my_method.py"},
    ],
)
def test_a_request_cannot_say_anything_else(given):
    with pytest.raises(ValueError, match=r"is not offered|is not an argument"):
        Declaration.read("pai").check(given)


def test_keys_and_values_are_told_apart_where_attention_is_edited():
    offers = Declaration.read("pai;strong=pai:gain=0.9;m3id;vcd;softpag;zerotuning:factor=0.6").offers
    assert offers["pai"].salt("positive") and offers["pai"].salt("positive") != offers["strong"].salt("positive")
    assert json.dumps(offers["pai"].methods[0].describe()["options"]["gain"]) in offers["pai"].salt("positive")
    assert (
        not offers["pai"].salt("negative")
        and not offers["m3id"].salt("positive")
        and not offers["vcd"].salt("negative")
    )
    assert offers["softpag"].salt("negative") and not offers["softpag"].salt("positive")


def test_which_prompts_must_be_read_whole():
    declared = Declaration.read("pai;act;zerotuning:factor=0.6;var;var+m3id")
    offers = declared.offers.values()
    assert [offer.whole_prompt for offer in offers] == [False, True, False, False, False]
    assert [offer.reads_anew("positive") for offer in offers] == [False, True, False, True, True]
    assert not declared.offers["var+m3id"].reads_anew("negative") and declared.observes


@pytest.fixture
def on(monkeypatch):
    """`on("cuda")`: vLLM is there, and runs on this kind of device."""
    monkeypatch.setenv(ENVIRONMENT, "")
    monkeypatch.setenv(RUNNER, "0")
    return lambda name: monkeypatch.setattr(engine, "this_device", lambda: DEVICES[name])


def test_looking_between_the_layers_needs_a_model_that_is_not_compiled(on):
    on("cpu")
    assert "--enforce-eager" in server_flags(Declaration.read("pai;var"))
    assert "--enforce-eager" not in server_flags(Declaration.read("pai;gift"))
    flags = server_flags(Declaration.read("", None, "lens"))
    assert "--enforce-eager" in flags and flags[flags.index("--worker-extension-cls") + 1] == engine.WORKER
    assert "--worker-extension-cls" not in server_flags(Declaration.read("", None, "self_check"))


def test_a_gpu_is_asked_for_the_backend_that_is_guarded(on):
    on("cpu")
    assert "--attention-backend" not in server_flags(Declaration.read("pai"))
    on("cuda")
    flags = server_flags(Declaration.read("pai"))
    assert flags[flags.index("--attention-backend") + 1] == "TRITON_ATTN"
    assert engine.guarded_options(Declaration.read("pai"))["attention_backend"] == "TRITON_ATTN"


@pytest.mark.parametrize(
    ("asked", "processor", "left"),
    [
        (None, "GuardedRows", "0"),
        ("0", "GuardedRows", "0"),
        ("1", "GuardedSlots", "1"),
        ("true", "GuardedSlots", "true"),
    ],
)
def test_each_runner_of_vllm_has_its_own_table_of_rows(on, monkeypatch, asked, processor, left):
    on("cuda")
    monkeypatch.delenv(RUNNER)
    if asked is not None:
        monkeypatch.setenv(RUNNER, asked)
    (path,) = engine.guarded_options(Declaration.read("pai"))["logits_processors"]
    assert path.endswith(f":{processor}") and os.environ[RUNNER] == left


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "0.9", "0.33.0+cpu"])
def test_versions_that_were_not_tested_are_refused(version):
    with pytest.raises(ImportError, match=rf"vLLM {version.replace('+', '.')} is installed.*0\.32\.x"):
        refuse_untested(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu"])
def test_the_tested_version_is_accepted(version):
    refuse_untested(version)


def test_no_vllm_at_all_is_said():
    with pytest.raises(ImportError, match="none is installed"):
        refuse_untested(None)


def test_a_hook_that_nobody_has_thought_of_is_refused(monkeypatch):
    from vlm_guard.method import hooks
    from vlm_guard.methods.pai import PAI

    known = hooks.HOOKS["edit_attention"]
    monkeypatch.setitem(hooks.HOOKS, "describe", known)
    monkeypatch.setattr(PAI, "describe", lambda self: {}, raising=False)
    with pytest.raises(ValueError, match="pai cannot be served inside vLLM: nothing of vLLM's asks for describe"):
        Declaration.read("pai")


def test_declaring_methods_loads_no_model_library():
    ask = "import sys; from vlm_guard.serving.vllm.declaration import Declaration; Declaration.read('', None, 'lens');"
    ask += "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", ask]).returncode == 0
