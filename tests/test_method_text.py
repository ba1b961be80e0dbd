"""One line for methods and their settings, the same everywhere; methods from the user's own files and modules."""

import subprocess
import sys

import pytest

from vlm_guard import builtin, methods, wrap
from vlm_guard.demo.method_options import chosen_methods, controls_of
from vlm_guard.eval.run.resume import MethodFolder
from vlm_guard.eval.run.settings import parse_methods
from vlm_guard.families.profiles import Profile, Setting
from vlm_guard.method import registry
from vlm_guard.method.method_text import MethodPart, is_outside, parse_method_text, written_methods
from vlm_guard.method.registry import method_class, method_files, resolve_methods

KNOWN = ("none", "pai", "var", "vcd")
OWN_METHOD = """
from dataclasses import dataclass
from vlm_guard import Method, option, register

@register({name!r})
@dataclass(frozen=True, kw_only=True)
class Halved(Method):
    "A method of a user."
    share: float = option(0.5, help="How much.", range=(0, 1), neutral=0.0)
"""


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is forgotten after it."""
    from vlm_guard.method import registry as method

    for name in method.method_names():
        method.method_class(name)  # a module that is imported only now would register in a copy that is thrown away
    monkeypatch.setattr(method, "_REGISTERED", dict(method._REGISTERED))


def parts(text):
    return [(part.reference, dict(part.options)) for part in parse_method_text(text, KNOWN)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pai", [("pai", {})]),
        (" var + vcd ", [("var", {}), ("vcd", {})]),
        ("pai:gain=0.4", [("pai", {"gain": "0.4"})]),
        ("pai:gain=0.4+var", [("pai", {"gain": "0.4"}), ("var", {})]),
        ("var+pai:gain=0.4,layers=2-8", [("var", {}), ("pai", {"gain": "0.4", "layers": "2-8"})]),
        (
            "pai:layers=1,2,gain=4e+3+vcd:strength=1",
            [("pai", {"layers": "1,2", "gain": "4e+3"}), ("vcd", {"strength": "1"})],
        ),
        ("vcd:words=cats+dogs, a=b", [("vcd", {"words": "cats+dogs", "a": "b"})]),
        ("var:f=my.module:function+vcd", [("var", {"f": "my.module:function"}), ("vcd", {})]),
        ("own/my_file.py", [("own/my_file.py", {})]),
        ("./a.py:share=1+var", [("./a.py", {"share": "1"}), ("var", {})]),
        ("a.py:Own:share=1", [("a.py:Own", {"share": "1"})]),
        ("var:x=1+my.module:Own", [("var", {"x": "1"}), ("my.module:Own", {})]),
        ("my.module:Own:share=1", [("my.module:Own", {"share": "1"})]),
    ],
)
def test_lines_are_read(text, expected):
    assert parts(text) == expected


def test_a_part_is_a_name_with_settings():
    assert parse_method_text("pai", KNOWN) == [MethodPart(reference="pai", options={})]
    assert [is_outside(text) for text in ("pai", "a.py", "a.b:C", "a.py:C", "pai.gain")] == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("text", ["", "+var", "var+", "var++pai", ":gain=1", "pai:gain=1+", "pai:gain=1++var"])
def test_a_missing_name_is_said(text):
    with pytest.raises(ValueError, match="name is missing"):
        parts(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pai:gain", "pai: takes METHOD.OPTION=VALUE"),
        ("pai:gain=1,pai.gain=2", "'pai.gain' is given twice"),
        ("pai:gain=0.4,gain=0.5", "pai: sets 'gain' twice, to '0.4' and '0.5'; write it once"),
        ("VAR", r"unknown method 'VAR'\. Did you mean 'var'\?"),
        ("pai:gain=0.4+VRA", "must be a number.*; 'VRA' behind the plus sign is no known method"),
        ("pai:gian=0.4+var", "pai has no option 'gian'. Did you mean 'gain'"),
    ],
)
def test_mistakes_in_a_line_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        resolve_methods(text)


def test_python_and_the_command_line_read_the_same():
    for text in ("pai:gain=0.4+var", "var+pai:pai.gain=0.4", "pai:gain=0.4,layers=1-2", "var+vcd"):
        assert resolve_methods(text) == parse_methods([text], {})[0].methods
    first, second = resolve_methods("pai:gain=0.4+var:move_fraction=0.25")
    assert (first.name, first.gain, second.name, second.move_fraction) == ("pai", 0.4, "var", 0.25)
    assert resolve_methods(["pai:gain=0.4", "var"])[0].gain == 0.4


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pai:gain=0.4,guidance=1+var", "pai:gain=0.4,guidance=1+var"),
        (f"pai:gain={method_class('pai')().gain}", "pai"),
        ("pai:heads=2:0,layers=1,2,gate=entropy>0.5", "pai:layers=1,2,heads=2:0,gate=entropy>0.5"),
        ("lqcd:neutraliser=os.path:join", "lqcd:neutraliser=os.path:join"),
    ],
)
def test_methods_write_the_line_that_they_are_read_from(text, line):
    assert written_methods(resolve_methods(text)) == line
    assert resolve_methods(line) == resolve_methods(text)


def test_every_method_can_be_written_and_read_again():
    for name in method_files():
        cls = method_class(name)
        variants = [cls.neutral()]
        for item in cls.options():
            for word in item.metadata["choices"][1:] if item.name == "variant" else ():
                variants.append(cls(variant=word))
                assert written_methods(variants[-1:]) == f"{name}:variant={word}"
        for method in variants:
            assert resolve_methods(written_methods([method])) == (method,)


def test_a_default_is_written_where_the_profile_has_another_value():
    settings = {"pai": {"gain": Setting(value=0.7, source="paper", profile="mine")}}
    profile = Profile(name="mine", match={}, settings=settings)
    default = method_class("pai")().gain
    for text, line in (("pai", "pai:gain=0.7"), (f"pai:gain={default}", f"pai:gain={default}")):
        (method,) = (item.with_settings(profile.settings_of("pai")) for item in resolve_methods(text))
        assert written_methods([method], profile) == line


def test_wrap_takes_what_the_tables_print():
    model, processor = builtin()
    with wrap(model, processor, "pai:gain=0.4") as guard:
        assert guard.methods[0].method.gain == 0.4
    with pytest.raises(ValueError, match=r"'pai\.gain' is given twice"):
        wrap(model, processor, "pai:gain=0.4", gain=0.5)


# -- classes by name ------------------------------------------------------------------------------------------


def test_every_method_class_can_be_imported_by_its_name():
    for name in method_files():
        cls = method_class(name)
        assert getattr(methods, cls.__name__) is cls and cls.__name__ in dir(methods)
    with pytest.raises(ImportError, match="NoSuchMethod"):
        from vlm_guard.methods import NoSuchMethod  # noqa: F401


def test_the_package_of_methods_does_not_import_torch():
    code = "import sys, vlm_guard.methods as m; dir(m); assert 'VAR' in dir(m); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- from outside ---------------------------------------------------------------------------------------------


def test_a_file_is_a_method(registered, tmp_path):
    path = tmp_path / "halved.py"
    path.write_text(OWN_METHOD.format(name="halved"))
    own, var = resolve_methods(f"{path}:share=0.25+var")
    assert (own.name, own.share, var.name) == ("halved", 0.25, "var")
    (spec,) = parse_methods([str(path)], {"halved.share": "0.75"})
    assert spec.methods[0].share == 0.75 and spec.label == str(path)
    assert resolve_methods("halved")[0].share == 0.5, "known by its name once it was loaded"


def test_a_changed_method_file_is_not_served_from_the_answers_of_the_earlier_one(registered, tmp_path):
    path, out = tmp_path / "edited.py", tmp_path / "run"
    path.write_text(OWN_METHOD.format(name="edited"))
    (method,) = resolve_methods(str(path))
    before = {"methods": [method.describe()]}
    assert before["methods"][0]["file"]["file"] == "edited.py"
    path.write_text(OWN_METHOD.format(name="edited") + "    other: float = option(0.5, help='More.')\n")
    assert method.describe() == before["methods"][0], "what runs is what was loaded"
    other = tmp_path / "next_process"
    other.mkdir()
    (other / "edited.py").write_text(path.read_text())
    del registry._REGISTERED["edited"]
    now = {"methods": [resolve_methods(str(other / "edited.py"))[0].describe()]}
    MethodFolder(out, before, "edited.py").save_sessions()
    MethodFolder(out, before, "edited.py").check(resume=True)
    with pytest.raises(ValueError, match=r"edited\.py has changed since the answers in .*run were made; give another"):
        MethodFolder(out, now, "edited.py").check(resume=True)
    MethodFolder(out, now, "edited.py").check(resume=False)
    assert "file" not in resolve_methods("pai")[0].describe(), "folders of built-in methods go on as ever"


def test_an_unregistered_class_is_named_after_its_file(registered, tmp_path):
    path = tmp_path / "quartered.py"
    path.write_text(OWN_METHOD.format(name="x").replace("@register('x')", ""))
    assert resolve_methods(str(path))[0].name == "quartered"


def test_an_importable_class_is_a_method(registered, tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(OWN_METHOD.format(name="of_a_module"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_methods("users_module:Halved:share=1")[0].share == 1


def test_a_file_with_two_methods_needs_a_choice(registered, tmp_path):
    path = tmp_path / "pair.py"
    path.write_text(OWN_METHOD.format(name="one") + OWN_METHOD.format(name="two").replace("Halved", "Doubled"))
    with pytest.raises(ValueError, match=r"several: Halved, Doubled; write for example .*pair\.py:Halved"):
        resolve_methods(str(path))
    assert resolve_methods(f"{path}:Doubled")[0].name == "two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.py", "there is no method file .*nowhere.py"),
        ("no_such_module:Own", "cannot be imported .*PYTHONPATH"),
        ("json:JSONDecoder", "no subclass of vlm_guard.Method"),
        ("empty.py", "it defines none"),
        ("broken.py", "fails: NameError"),
    ],
)
def test_what_is_no_method_is_explained(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("from vlm_guard import Method\n")
    (tmp_path / "broken.py").write_text("nothing_here\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        resolve_methods(text)


def test_a_taken_name_is_refused(registered, tmp_path):
    path = tmp_path / "mine.py"
    method_class("var")
    path.write_text(OWN_METHOD.format(name="var"))
    with pytest.raises(ValueError, match="'var' is already taken"):
        resolve_methods(str(path))


def test_a_visitor_of_the_demo_cannot_name_a_file(tmp_path):
    path = tmp_path / "visitors.py"
    path.write_text("raise SystemExit('this was run')\n")
    for attempt in (str(path), "os:path", f"{path}:Own"):
        with pytest.raises(ValueError, match="none of this page's methods"):
            chosen_methods([attempt], {})
        with pytest.raises(ValueError, match="none of this page's methods"):
            controls_of(attempt)
