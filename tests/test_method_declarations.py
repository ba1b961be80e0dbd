"""What methods declare is what they do: stations, imports, compiled steps, and hooks that say what they imply."""

import ast
from pathlib import Path

import pytest

from vlm_guard.method import AttentionCall, HiddenEditCall, Method
from vlm_guard.method.base import STATIONS
from vlm_guard.method.hooks import HOOKS, acts_before_logits, acts_in_model, hooks_of, needs_whole_prompt
from vlm_guard.method.registry import method_class, method_names

METHODS_FOLDER = Path(__file__).parents[1] / "methods"
# The folder's own __init__ finds methods and is none.
FILES = sorted({*METHODS_FOLDER.rglob("*.py")} - {METHODS_FOLDER / "__init__.py"})
# What a method may import of this project: the public face, the kernels, its own folder and what methods share.
ALLOWED = ("vlm_guard.method", "vlm_guard.kernels")


def imported(path):
    """Every module of this project that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def own_folder(path):
    return "vlm_guard.methods." + path.relative_to(METHODS_FOLDER).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(METHODS_FOLDER)))
def test_methods_import_from_the_public_face_and_the_kernels_only(path):
    for module in imported(path):
        if module.split(".")[0] not in ("vlm_guard", "demo", "eval", "tests", "kernels", "methods"):
            continue
        own = module.startswith((own_folder(path), "vlm_guard.methods.shared"))
        public = module == "vlm_guard.method" or module.startswith("vlm_guard.kernels")
        assert own or public, f"{path.name} imports {module}; methods import from {' and '.join(ALLOWED)} only"


def test_the_public_face_offers_what_it_says():
    import vlm_guard.method as face

    assert all(getattr(face, name) is not None for name in face.__all__)
    assert set(face._PUBLIC) == set(face.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = face.nothing


@pytest.mark.parametrize("name", method_names())
def test_declared_stations_are_those_of_the_hooks(name):
    cls = method_class(name)
    stations = {hook.station for hook in hooks_of(cls).values()} - {None}
    assert stations == set(cls.stations)


@pytest.mark.parametrize("name", method_names())
def test_a_method_whose_steps_compile_does_nothing_in_them_that_changes(name):
    cls = method_class(name)
    if not cls.compiles:
        return
    for hook in hooks_of(cls):
        if HOOKS[hook].per_step and HOOKS[hook].in_model:
            assert hook == "edit_attention" and cls.steady, f"{hook} runs in every step"


def test_every_hook_exists_and_has_a_known_station():
    for name, hook in HOOKS.items():
        assert callable(getattr(Method, name)), name
        assert hook.station is None or hook.station in STATIONS
    assert {hook.station for hook in HOOKS.values()} - {None} == set(STATIONS)


class Attending(Method):
    def edit_attention(self, call: AttentionCall) -> None:
        return None


class Steering(Method):
    def edit_hidden(self, call: HiddenEditCall) -> None:
        return None


class Watching(Method):
    edited_branch = "negative"

    def observe_hidden(self, call):
        return None


def test_what_hooks_imply():
    assert acts_before_logits(Attending) and acts_in_model(Attending)
    assert not needs_whole_prompt(Attending, "positive")
    assert needs_whole_prompt(Steering, "positive") and needs_whole_prompt(Steering, "negative")
    assert needs_whole_prompt(Watching, "negative") and not needs_whole_prompt(Watching, "positive")
    assert acts_before_logits(method_class("carve")) and not acts_in_model(method_class("carve"))
    assert not acts_before_logits(method_class("vcd")) and not acts_before_logits(Method)
    assert acts_in_model(method_class("uncertainty")) and acts_in_model(method_class("iri"))
