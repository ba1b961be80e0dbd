import shlex
from dataclasses import dataclass

import pytest
from torch import Tensor

import vlm_guard.method.registry as method_module
from vlm_guard.demo.answering import GenerationSettings
from vlm_guard.demo.copying import as_command, as_python
from vlm_guard.demo.method_options import (
    changed_options,
    chosen_methods,
    controls_of,
    guarding_methods,
    method_choices,
)
from vlm_guard.method.base import Method, option
from vlm_guard.method.hooks import offered_options
from vlm_guard.method.registry import method_class, method_names, register


@pytest.fixture
def every_kind(monkeypatch):
    """A method with one option of each kind, known for the length of a test."""
    monkeypatch.setattr(method_module, "_REGISTERED", dict(method_module._REGISTERED))

    @register("demo_test_method")
    @dataclass(frozen=True, kw_only=True)
    class EveryKind(Method):
        """One option of each kind."""

        stations = ("logits",)

        share: float = option(0.5, help="a share", range=(0.0, 1.0))
        count: int = option(3, help="a count", range=(1, 20))
        wide: float = option(5.0, help="wide", range=(0.0, 1e6))
        unset: float | None = option(None, help="unset", range=(0.0, 1.0))
        way: str = option("up", help="a way", choices=("up", "down"))
        flag: bool = option(False, help="a flag")
        layers: str = option("2-", help="layers")

        def edit_logits(self, logits: Tensor, first: Tensor, step: int) -> Tensor:
            return logits

    return EveryKind


def by_name(name):
    return {control.name: control for control in controls_of(name)}


def test_controls_come_from_the_fields(every_kind):
    controls = by_name("demo_test_method")
    kinds = {name: control.kind for name, control in controls.items()}
    assert kinds == {
        "share": "slider", "count": "slider", "wide": "number", "unset": "number",
        "way": "choice", "flag": "switch", "layers": "text", "gate": "text",
    }  # fmt: skip
    assert (controls["share"].low, controls["share"].high, controls["share"].step) == (0.0, 1.0, 0.01)
    assert controls["count"].step == 1 and controls["way"].choices == ("up", "down")


@pytest.mark.parametrize("name", [name for name in method_names() if name != "none"])
def test_every_registered_method_is_offered_with_every_option(name):
    assert name in guarding_methods() and name in [value for _, value in method_choices()]
    controls = controls_of(name)
    assert [control.name for control in controls] == [item.name for item in offered_options(method_class(name))]
    for control in controls:
        if control.kind == "slider":
            assert control.low <= control.default <= control.high
            assert 10 <= (control.high - control.low) / control.step <= 2000 or control.step == 1
    # Untouched controls give the method's own defaults.
    values = {control.key: control.default for control in controls}
    assert chosen_methods([name], values) == (method_class(name)(),)
    assert changed_options([name], values) == {}


def test_values_of_controls_reach_the_method(every_kind):
    values = {
        "demo_test_method.share": 1, "demo_test_method.count": 7.0, "demo_test_method.wide": "250.5",
        "demo_test_method.unset": " ", "demo_test_method.way": "down", "demo_test_method.flag": True,
        "pai.gain": 0.9,
    }  # fmt: skip
    (method,) = chosen_methods(["demo_test_method"], values)
    assert method == every_kind(share=1.0, count=7, wide=250.5, way="down", flag=True)
    assert isinstance(method.count, int) and isinstance(method.share, float)


def test_combinations_keep_their_order_and_options():
    methods = chosen_methods(["vcd", "pai"], {"pai.gain": 0.4, "vcd.strength": 0.5})
    assert [method.name for method in methods] == ["vcd", "pai"]
    assert (methods[0].strength, methods[1].gain) == (0.5, 0.4)


def test_wrong_values_are_refused_in_the_methods_own_words(every_kind):
    with pytest.raises(ValueError, match=r"demo_test_method: option share is 7\.0; allowed: 0\.0 to 1\.0"):
        chosen_methods(["demo_test_method"], {"demo_test_method.share": 7})
    with pytest.raises(ValueError, match="must be a number"):
        chosen_methods(["demo_test_method"], {"demo_test_method.wide": "much"})
    with pytest.raises(ValueError, match="no method is chosen"):
        chosen_methods([], {})
    with pytest.raises(ValueError, match="unknown method"):
        chosen_methods(["nope"], {})


@pytest.mark.parametrize("path", ["os:system", "subprocess:run", "vlm_guard.method.registry : method_names"])
def test_a_visitor_cannot_name_code(every_kind, path):
    for key in ("gift.content_words", "lqcd.neutraliser", "demo_test_method.layers"):
        with pytest.raises(ValueError, match="not on this page"):
            chosen_methods([key.split(".")[0]], {key: path})


def test_layer_and_head_lists_are_not_taken_for_code(every_kind):
    assert chosen_methods(["demo_test_method"], {"demo_test_method.layers": "1,last:14"})[0].layers == "1,last:14"


def test_the_copied_python_runs_and_says_what_the_page_said(answering_model, pictures, tmp_path, monkeypatch, capsys):
    picture, settings = pictures.first(), GenerationSettings(max_new_tokens=24)
    prompt = 'What\'s in "this" image?'
    names, values = ["paint", "vcd"], {"paint.local_gain": 1.5, "vcd.strength": 0.3}
    code = as_python("builtin", names, values, prompt, settings)
    assert "'paint.local_gain': 1.5" in code
    monkeypatch.chdir(tmp_path)
    picture.image.save("picture.png")
    exec(compile(code, "copied.py", "exec"), {})
    answer = answering_model.answer(picture.image, prompt, chosen_methods(names, values), settings)
    assert capsys.readouterr().out.strip() == answer.text


def test_the_copied_command_is_quoted_and_names_what_was_changed():
    command = as_command("builtin", ["pai"], {"pai.gain": 0.6}, "it's; rm -rf $HOME", GenerationSettings(seed=3))
    parts = shlex.split(command)
    assert parts[:4] == ["vlm-guard", "generate", "picture.png", "it's; rm -rf $HOME"]
    assert parts[parts.index("--set") + 1] == "pai.gain=0.6" and parts[parts.index("--seed") + 1] == "3"
    assert "--sample" in as_command("builtin", ["pai"], {}, "x", GenerationSettings(temperature=1.0))


def test_the_copied_command_is_understood_by_the_command_line(pictures, tmp_path, monkeypatch, capsys):
    from vlm_guard.cli import main

    monkeypatch.chdir(tmp_path)
    pictures.first().image.save("picture.png")
    settings = GenerationSettings(max_new_tokens=8)
    command = shlex.split(as_command("builtin", ["pai"], {"pai.gain": 0.6}, "What is this?", settings))
    with pytest.raises(SystemExit) as ended:
        main(command[1:])
    assert ended.value.code == 0, capsys.readouterr().err
    assert "pai" in capsys.readouterr().out
