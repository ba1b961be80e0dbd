"""Options that nobody gave follow the model's published settings, and results say which values were used."""

import json

import pytest

from vlm_guard import cli, wrap
from vlm_guard.families.profiles import Profile, Setting, all_profiles, find_profile, read_profile
from vlm_guard.method.registry import method_class, method_names, resolve_methods
from vlm_guard.methods.pai import PAI
from zoo import assert_pristine


def profile(**settings):
    return Profile(
        name="tiny",
        match={"model_type": "llava"},
        settings={
            method: {
                option: Setting(value=value, source="paper", note="table 1", profile="tiny")
                for option, value in own.items()
            }
            for method, own in settings.items()
        },
    )


def guarded(zoo, method, known, **options):
    with wrap(zoo.model, None, method, profile=known, **options) as guard:
        return guard.methods[0].method


def test_wrap_takes_a_models_published_settings(zoo_model):
    zoo = zoo_model("llava")
    known = profile(pai={"gain": 0.5, "layers": "1-2"})
    method = guarded(zoo, "pai", known)
    assert (method.gain, method.layers, method.guidance) == (0.5, "1-2", 1.1)
    assert method.describe()["sources"] == {"gain": "profile tiny (paper)", "layers": "profile tiny (paper)"}
    assert guarded(zoo, "pai", profile()).gain == 0.2
    assert_pristine(zoo.model)


@pytest.mark.parametrize("given", [{"gain": 0.2}, {"gain": 0.0}, {"gain": 1.0}])
def test_an_option_that_was_given_stays_as_given_even_at_its_default(zoo_model, given):
    zoo = zoo_model("llava")
    known = profile(pai={"gain": 0.5})
    assert guarded(zoo, "pai", known, **given).gain == given["gain"]
    ready = PAI(**given)
    assert guarded(zoo, ready, known).gain == given["gain"]
    assert ready.describe()["sources"] == {"gain": "given"}


def test_a_ready_method_is_not_changed_by_wrapping_it(zoo_model):
    ready = PAI(guidance=2.0)
    method = guarded(zoo_model("llava"), ready, profile(pai={"gain": 0.5}))
    assert (method.gain, method.guidance, ready.gain) == (0.5, 2.0, 0.2)
    assert ready.describe()["sources"] == {"guidance": "given"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"strength": 1.0}, "no option of it: strength"), ({"gain": 7.0}, "option gain is 7.0; allowed: 0.0 to 1.0")],
)
def test_a_wrong_setting_is_refused(zoo_model, settings, message):
    with pytest.raises(ValueError, match=message):
        wrap(zoo_model("llava").model, None, "pai", profile=profile(pai=settings))
    assert_pristine(zoo_model("llava").model)


def test_settings_survive_the_file_and_the_users_profile_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_GUARD_PROFILES", str(tmp_path))
    shipped = next(item for item in all_profiles() if item.name == "llava-1.5-7b")
    shipped.save(tmp_path / "copy.json")
    assert read_profile(tmp_path / "copy.json") == shipped
    data = json.loads((tmp_path / "copy.json").read_text(encoding="utf-8"))
    del data["settings"]["pai"]["gain"]["profile"]
    data |= {"name": "mine"}
    data["settings"]["pai"]["gain"]["value"] = 0.7
    (tmp_path / "copy.json").write_text(json.dumps(data), encoding="utf-8")

    class Text:
        model_type, hidden_size, num_hidden_layers, vocab_size = "llama", 4096, 32, 32064

    class Config:
        model_type = "llava"

        def get_text_config(self, decoder):
            return Text

    found = find_profile(Config())
    assert found.settings_of("pai")["gain"].value == 0.7 and found.settings_of("pai")["gain"].profile == "mine"
    assert found.settings_of("gift")["layers"].value == "12-22" and found.value("sink_dimensions") == [1415, 2533]


@pytest.mark.parametrize("name", method_names())
def test_the_published_variant_is_what_the_options_say(name):
    cls = method_class(name)
    departing = {item.name: item.metadata["published"] for item in cls.options() if "published" in item.metadata}
    has_variant = any(item.name == "variant" and "published" in item.metadata["choices"] for item in cls.options())
    assert has_variant == bool(departing), "a default that departs from what was published has a variant, and only then"
    if not departing:
        return
    (published,) = resolve_methods(name, {"variant": "published"})
    assert {option: getattr(published, option) for option in departing} == departing
    assert all(getattr(cls(), option) != value for option, value in departing.items())
    assert {option: published.describe()["sources"][option] for option in departing} == dict.fromkeys(
        departing, "published"
    )


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as finished:
        cli.main(list(arguments))
    assert finished.value.code == 0
    return capsys.readouterr().out


def test_the_table_of_a_method_shows_them(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    text = printed(capsys, "methods", "gift")
    assert "qwen2-vl-7b" in text and "5-18" in text
    described = json.loads(printed(capsys, "methods", "pai", "--json"))
    assert {"option": "gain", "value": 0.5, "source": "secondary"}.items() <= described["settings"][0].items()
