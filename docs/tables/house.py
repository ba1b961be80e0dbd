"""The house as it is written: every module, the room it lives in, and what it imports, read from the files.

Nothing is imported to find this out, so that a file with a mistake in it can be read too.
"""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "vlm_guard"
# Folders of the checkout that are installed as parts of the package.
SIBLINGS = ("kernels", "methods", "eval", "demo")
ROOMS = tomllib.loads(Path(__file__).with_name("rooms.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Import:
    """One name that a file takes from this project.

    Attributes:
        module: the module it comes from, as it is imported.
        name: what is taken from it; empty for `import module`.
        line: where in the file.
        types_only: whether it stands under `if TYPE_CHECKING`, so that it never runs.
    """

    module: str
    name: str
    line: int
    types_only: bool


@dataclass(frozen=True)
class Module:
    """One file of the package.

    Attributes:
        name: as it is imported, `vlm_guard.kernels.reference`.
        path: the file.
        tree: the file as Python reads it.
    """

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The room it lives in; files of `vlm_guard/` itself are named by themselves, its `__init__` is `vlm_guard`."""
        return room_of(self.name)

    @property
    def docstring(self) -> str:
        """What the file says of itself, or nothing."""
        return ast.get_docstring(self.tree) or ""

    def imports(self) -> Iterator[Import]:
        """What it takes from this project, also inside functions."""
        for node, types_only in _with_type_blocks(self.tree, False):
            if isinstance(node, ast.Import):
                found = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node)
                found = [(source, alias.name) for alias in node.names]
            else:
                continue
            for source, name in found:
                if source.partition(".")[0] == PACKAGE:
                    yield Import(*_home(source, name), node.lineno, types_only)

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The module that `from ... import` names, relative ones counted from this file."""
        if not node.level:
            return node.module or ""
        folder = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        parts = folder[: len(folder) - node.level + 1]
        return ".".join([*parts, *([node.module] if node.module else [])])


def _with_type_blocks(node: ast.AST, types_only: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below `node`, each with whether it stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        checked = isinstance(node, ast.If) and child in node.body and _is_type_check(node.test)
        yield child, types_only or checked
        yield from _with_type_blocks(child, types_only or checked)


def _is_type_check(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _home(source: str, name: str) -> tuple[str, str]:
    """The module a name comes from, and the name: `wrap` comes from the guard, a room imported by name from itself."""
    if f"{source}.{name}" in modules():
        return f"{source}.{name}", ""
    if source == PACKAGE and name:
        for found in modules()[PACKAGE].imports():  # its names are resolved on first use; it imports them for types
            if found.name == name:
                return found.module, name
    return source, name


def room_of(name: str) -> str:
    """The room of a module: `vlm_guard.kernels.reference` is in `kernels`, `vlm_guard.guard` is its own."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


@cache
def modules() -> Mapping[str, Module]:
    """Every file of the package by the name it is imported by."""
    found = {}
    for top in (PACKAGE, *SIBLINGS):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == PACKAGE else (PACKAGE, *parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def rooms_in_order() -> list[str]:
    """The rooms from the foundation upwards, then the leaves."""
    return [*(room for line in ROOMS["order"] for room in line), *ROOMS["leaves"]]
