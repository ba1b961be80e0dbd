"""One file or folder per paper; found by scanning this folder.

`from vlm_guard.methods import VAR` gives a method's class. Its file is found by reading the files, and only that one
is imported, so that importing this package does not import torch.

May import: `vlm_guard.method` and `vlm_guard.kernels`, and nothing deeper.
"""

import ast
from functools import cache
from importlib import import_module
from typing import Any


@cache
def _classes() -> dict[str, str]:
    """The module of every class that is registered as a method."""
    from vlm_guard.method.registry import method_files

    found = {}
    for name, path in method_files().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(_registers(item) for item in node.decorator_list):
                found[node.name] = name
    return found


def _registers(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "register"


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and name in _classes():
        return getattr(import_module(f"{__name__}.{_classes()[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_classes()})
