"""Calibration finds planted sinks and refuses where there are none; profiles are read, matched and refused."""

import json
from typing import get_args

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.calibration.new_profile import new_profile
from vlm_guard.families.profiles import Fact, Profile, Source, all_profiles, find_profile, read_profile
from vlm_guard.method.registry import method_class
from vlm_guard.methods.var.sink_search import SinkMeasurement, calibrate_sinks
from zoo import Prompt, assert_pristine, build

torch.set_num_threads(1)


def plant(zoo, dimension, strength):
    """Make the first token massive in one dimension at the entrance of every layer."""

    def change(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, 0, dimension] = strength
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    layers = zoo.model.get_decoder().layers
    return [layer.register_forward_pre_hook(change, with_kwargs=True, prepend=True) for layer in layers]


def test_a_planted_dimension_is_found():
    zoo = build("llava")
    inputs = zoo.make_inputs([Prompt(text_before=5, images=1, text_after=8, content=0)])
    hooks = plant(zoo, 23, 300.0)
    facts = calibrate_sinks(zoo.model, [inputs])
    for hook in hooks:
        hook.remove()
    assert facts["sink_dimensions"].value == [23]
    # One dimension carries nearly everything: activation close to sqrt(hidden size), threshold half of it.
    largest = zoo.config.text_config.hidden_size**0.5
    assert facts["sink_threshold"].value == pytest.approx(largest / 2, rel=0.05)
    assert_pristine(zoo.model)


def test_a_model_without_sinks_is_refused():
    flat = SinkMeasurement(first_token=torch.full((64,), 1.0), others=torch.full((64,), 0.9))
    assert flat.dimensions() == []
    zoo = build("llava")
    inputs = zoo.make_inputs([Prompt(text_before=5, images=1, text_after=8, content=0)])
    with pytest.raises(ValueError, match="no hidden dimension of the first token stands out"):
        calibrate_sinks(zoo.model, [inputs])


def test_no_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        calibrate_sinks(build("llava").model, [])


def test_the_measured_profile_serves_var(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path))
    zoo = build("llava")
    facts = {"sink_dimensions": Fact(value=[3], source="calibrated"), "sink_threshold": Fact(value=1.5, source="paper")}
    new_profile(zoo.model, "mine", facts).save(tmp_path / "mine.json")
    assert find_profile(zoo.config).name == "mine"
    with wrap(zoo.model, None, "var") as guard:
        assert guard.methods[0].prepared.dimensions == (3,)
        assert guard.methods[0].prepared.threshold == 1.5
    assert find_profile(build("gemma3").config) is None


def test_shipped_profiles_are_sound():
    names = [profile.name for profile in all_profiles()]
    assert "llava-llama-2-7b" in names and len(set(names)) == len(names)
    for profile in all_profiles():
        assert profile.match.get("model_type")
        for fact in profile.facts.values():
            assert fact.source in get_args(Source) and fact.note
        for method, settings in profile.settings.items():
            values = {option: setting.value for option, setting in settings.items()}
            described = method_class(method)().with_settings(settings).describe()
            assert values.items() <= described["options"].items()
            for option, setting in settings.items():
                assert setting.source in get_args(Source) and setting.note and setting.profile == profile.name
                assert described["sources"][option] == f"profile {profile.name} ({setting.source})"


def test_a_damaged_profile_says_what_to_do(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"name": "bad"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"not a model profile.*calibrate"):
        read_profile(path)


def test_profiles_match_lists_and_text_settings():
    config = build("llava").config
    assert Profile(name="a", match={"model_type": ["llava", "llava_next"]}).matches(config)
    assert not Profile(name="b", match={"model_type": "llava", "text.hidden_size": 1}).matches(config)
