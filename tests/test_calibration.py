"""Calibration finds planted sinks and refuses where there are none; profiles are read, matched and refused."""

import json
from functools import partial
from typing import get_args

import pytest
import torch

from vlm_guard import wrap
from vlm_guard.calibration.new_profile import new_profile
from vlm_guard.families.profiles import Fact, Profile, Source, all_profiles, find_profile, read_profile
from vlm_guard.method.registry import method_class
from vlm_guard.methods.var.sink_look import Look, look_at_prompts
from vlm_guard.methods.var.sink_search import drawing_layers, find_rule, sink_facts
from zoo import Prompt, assert_pristine, build

torch.set_num_threads(1)


def plant(zoo, dimension, strength):
    """Let the first token draw attention in every layer, and be massive in one dimension at every layer's entrance."""

    def massive(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, 0, dimension] = strength
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    hooks = []
    for layer in zoo.model.get_decoder().layers:
        hooks.append(layer.register_forward_pre_hook(massive, with_kwargs=True, prepend=True))
        size = layer.self_attn.head_dim
        # Only the slowest rotary pair, which hardly turns within a prompt.
        drawn = torch.zeros(size)
        drawn[size // 2 - 1] = drawn[size - 1] = 8.0

        def ask(module, args, output, drawn=drawn):
            return output + drawn.repeat(output.shape[-1] // len(drawn))

        def answer(module, args, output, drawn=drawn):
            output = output.clone()
            output[:, 0] += drawn.repeat(output.shape[-1] // len(drawn))
            return output

        hooks.append(layer.self_attn.q_proj.register_forward_hook(ask))
        hooks.append(layer.self_attn.k_proj.register_forward_hook(answer))
    return hooks


def sink_facts_of(zoo, prompts):
    return sink_facts(look_at_prompts(prompts, partial(wrap, zoo.model, None)), len(prompts))


def test_a_planted_sink_is_found():
    zoo = build("llava")
    inputs = zoo.make_inputs([Prompt(text_before=5, images=1, text_after=8, content=0)])
    hooks = plant(zoo, 23, 300.0)
    facts = sink_facts_of(zoo, [inputs])
    for hook in hooks:
        hook.remove()
    assert facts["sink_dimensions"].value == [23]
    depth = len(zoo.model.get_decoder().layers)
    assert facts["sink_layers"].value == (f"2-{depth - 1}" if depth > 3 else "2")
    # One dimension carries nearly everything: activation close to sqrt(hidden size).
    assert 1.0 < facts["sink_threshold"].value < zoo.config.text_config.hidden_size**0.5
    assert "0 of" in facts["sink_dimensions"].note and "VAR" in facts["sink_dimensions"].note
    assert_pristine(zoo.model)


def test_what_is_massive_but_draws_nothing_is_no_sink():
    zoo = build("llava")
    inputs = zoo.make_inputs([Prompt(text_before=5, images=1, text_after=8, content=0)])
    with pytest.raises(ValueError, match="no layer has sinks"):
        sink_facts_of(zoo, [inputs])


def look(layer, sinks, visual_sinks, others, dimensions=(7,), count=100):
    """A prompt of `count` tokens: activations of what draws, of visual tokens that draw a little, of ordinary ones."""
    even = torch.full((count,), 0.02)
    drawn = torch.full((count,), 0.004)
    drawn[: len(sinks)] = 0.5
    drawn[10 : 10 + len(visual_sinks)] = 0.04
    visual = torch.zeros(count, dtype=torch.bool)
    visual[5:70] = True
    activation = torch.full((count, len(dimensions)), others)
    activation[: len(sinks)] = torch.tensor(sinks).reshape(len(sinks), len(dimensions))
    activation[10 : 10 + len(visual_sinks)] = torch.tensor(visual_sinks).reshape(len(visual_sinks), len(dimensions))
    return Look(layer=layer, drawn=drawn, even=even, visual=visual, dimensions=tuple(dimensions), activation=activation)


def test_the_published_dimensions_of_llava_are_found_where_sinks_are_like_its():
    looks = [
        look(layer, [[28.0, 34.0]], [[21.0, 26.0], [22.0, 24.0]], 2.5, dimensions=(1415, 2533))
        for layer in range(2, 32)
        for _ in range(3)
    ]
    rule = find_rule(looks)
    assert rule.dimensions == (1415, 2533) and rule.layers == tuple(range(2, 32))
    assert (rule.missed, rule.mistaken, rule.sinks, rule.visual) == (0, 0, 90, 2.0)
    assert 2.5 < rule.threshold < 21.0


def test_sinks_that_every_token_resembles_are_found_in_the_layers_where_they_differ():
    # SmolLM2-135M: (first token, largest of the others) at the entrance of a layer.
    seen = {2: (20.2, 20.4), 5: (22.8, 23.4), 10: (6.5, 23.3), 15: (23.8, 18.4), 20: (23.8, 16.5), 25: (23.8, 17.9)}
    seen[29] = (23.0, 21.9)
    rule = find_rule([look(layer, [[first]], [], others, (507,)) for layer, (first, others) in seen.items()])
    assert rule.dimensions == (507,) and rule.layers == (15, 20, 25)
    assert 18.4 * 1.05 < rule.threshold < 23.8 / 1.05
    assert rule.visual == 0 and "VAR, which edits a head only where there is one, edits none" in rule.describe()


def test_errors_of_the_rule_are_counted():
    looks = [look(4, [[24.0]], [], 3.0) for _ in range(20)]
    # One ordinary token in 2,000 is as massive as a sink: the rule stays, and the mistake is said.
    looks[0].activation[50] = 24.0
    rule = find_rule(looks)
    assert (rule.sinks, rule.missed, rule.mistaken) == (20, 0, 1)
    assert rule.ordinary == 20 * 99


def test_sinks_that_no_dimension_marks_are_refused_with_what_was_nearest():
    looks = [look(layer, [[9.0]], [], 8.9) for layer in (3, 4)]
    assert drawing_layers(looks) == (3, 4) and find_rule(looks) is None
    with pytest.raises(ValueError, match=r"layers 3-4 have sinks.*nearest is 7 in layer [34], 9.0 against 8.9"):
        sink_facts(looks, 1)


def test_no_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        sink_facts_of(build("llava"), [])


def test_var_edits_only_the_layers_where_sinks_are_known(tmp_path):
    zoo = build("llava")
    depth = len(zoo.model.get_decoder().layers)
    facts = {"sink_dimensions": Fact(value=[3], source="calibrated", note="n")}
    known = facts | {"sink_layers": Fact(value=f"{depth - 1}", source="calibrated", note="n")}
    with wrap(zoo.model, None, "var", layers="all", profile=Profile(name="t", match={}, facts=known)) as guard:
        assert guard.methods[0].layers == {depth - 1}
    with wrap(zoo.model, None, "var", layers="all", profile=Profile(name="t", match={}, facts=facts)) as guard:
        assert guard.methods[0].layers == set(range(depth))
    with wrap(
        zoo.model, None, "var", layers="all", sink_dimensions="4", profile=Profile(name="t", match={}, facts=known)
    ) as guard:
        assert guard.methods[0].layers == set(range(depth)), "whoever names dimensions is taken at their word"


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


def test_a_profile_that_was_written_anew_or_taken_away_is_noticed(tmp_path, monkeypatch):
    """Profiles are kept once they are read; a file of the same length in its place is another one all the same."""
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path))
    zoo = build("llava")
    for dimension in (3, 4):
        facts = {"sink_dimensions": Fact(value=[dimension], source="calibrated", note="n")}
        new_profile(zoo.model, "mine", facts).save(tmp_path / "mine.json")
        assert find_profile(zoo.config).value("sink_dimensions") == [dimension]
    (tmp_path / "mine.json").unlink()
    assert (find_profile(zoo.config) or Profile(name="none", match={})).name != "mine"


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
