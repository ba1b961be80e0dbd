"""Settings: YAML with flags on top, and the texts that name methods."""

import pytest

from vlm_guard.eval.run.settings import parse_methods, read_settings
from vlm_guard.method.method_text import parse_options


def test_flags_go_on_top_of_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: scenes:broken\nmethods: [none, var+vcd]\noptions: {var.move_fraction: 0.5}\n"
        "pope: {parser: opera, per_image: 4}\nbatch_size: 2\n",
        encoding="utf-8",
    )
    flags = {"batch_size": 8, "pope.parser": "vcd", "options": {"vcd.alpha": "1"}, "seed": None, "tasks": ["chair"]}
    settings = read_settings(path, flags)
    assert (settings.data, settings.batch_size, settings.tasks, settings.seed) == ("scenes:broken", 8, ["chair"], 0)
    assert (settings.pope.parser, settings.pope.per_image) == ("vcd", 4)
    assert settings.options == {"var.move_fraction": 0.5, "vcd.alpha": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "batchsize: 3",
            "batchsize: there is no such setting; did you mean 'batch_size'.*allowed settings: model",
        ),
        ("batch_size: 0", r"batch_size: .*greater than or equal to 1 [(]given 0[)]"),
        ("tasks: [chair, mmvet]", "allowed: chair, pope"),
        ("- a list", "must hold settings"),
        ("a: [", "no valid YAML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_settings(path, {})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        read_settings(tmp_path / "nothing.yaml", {})


def test_methods_with_shared_and_own_options():
    options = parse_options(["var.move_fraction=0.5", "var.layers=all"])
    texts = ["none", "var", "var:move_fraction=0.7,sink_dimensions=1,2", "var+vcd:vcd.contrast=2"]
    if "contrast" not in _options_of("vcd"):
        texts[3] = "var+vcd"
    plain, first, second, both = parse_methods(texts, options)
    assert plain.methods[0].name == "none"
    assert (first.methods[0].move_fraction, first.methods[0].layers) == (0.5, "all")
    assert (second.methods[0].move_fraction, second.methods[0].sink_dimensions) == (0.7, "1,2")
    assert [method.name for method in both.methods] == ["var", "vcd"]
    assert both.methods[0].move_fraction == 0.5
    assert second.label == texts[2] and second.directory == "var-move_fraction=0.7,sink_dimensions=1,2"


def _options_of(name: str) -> set[str]:
    from dataclasses import fields

    from vlm_guard.method.registry import method_class

    return {field.name for field in fields(method_class(name))}


def test_an_option_without_prefix_belongs_to_the_only_method():
    specs = parse_methods(["none", "var"], {"move_fraction": "0.3"})
    assert specs[1].methods[0].move_fraction == 0.3
    with pytest.raises(ValueError, match="say which method"):
        parse_methods(["var", "pai"], {"move_fraction": "0.3"})


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["vra"], {}, r"Did you mean .*'var'"),
        (["none", "none"], {}, "each only once"),
        (["none"], {"var.move_fraction": "1"}, "fits no method of this run"),
        (["var"], {"var.move_fractoin": "1"}, "Did you mean 'move_fraction'"),
        (["var"], {"var.move_fraction": "7"}, r"allowed: 0\.0 to 1\.0"),
    ],
)
def test_wrong_methods_are_explained(texts, options, message):
    with pytest.raises(ValueError, match=message):
        parse_methods(texts, options)


def test_an_option_needs_a_value():
    with pytest.raises(ValueError, match=r"METHOD\.OPTION=VALUE"):
        parse_options(["var.move_fraction"])
