"""Methods from the user's own files and modules, which are run when, and only when, the user names them."""

import hashlib
import sys
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from vlm_guard.method.base import Method
from vlm_guard.method.method_source import method_source
from vlm_guard.method.registry import register


def outside_method(reference: str) -> type[Method]:
    """The method class in "my_file.py", "my_file.py:MyMethod" or "my.module:MyMethod".

    A class without `@register` is known by its file's or module's last name from then on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be imported, or it holds no method, or several and none is chosen.
    """
    if reference.endswith(".py"):
        source, wanted = reference, ""
    else:
        source, _, wanted = reference.rpartition(":")
    module = _load_file(Path(source).resolve()) if source.endswith(".py") else _import(source, reference)
    cls = _named(module, wanted, reference) if wanted else _only(module, reference)
    if not cls.__dict__.get("name"):
        stem = Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]
        register(stem.lower())(cls)
    method_source(cls)  # its hash is of the file that was loaded, however long the run goes on
    return cls


@cache
def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no method file {path}")
    # A name of its own per path: two files of one name must not pass for each other. Dataclasses look it up.
    name = f"vlm_guard_outside_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"the method file {path} fails: {type(error).__name__}: {error}") from error
    return module


def _import(name: str, reference: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"method {reference!r}: module {name!r} cannot be imported ({error}); install it, put its folder into "
            "PYTHONPATH, or name the file, such as my_method.py"
        ) from error


def _named(module: ModuleType, wanted: str, reference: str) -> type[Method]:
    cls = getattr(module, wanted, None)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise ValueError(f"method {reference!r}: {wanted!r} is no subclass of vlm_guard.Method there")
    return cls


def _only(module: ModuleType, reference: str) -> type[Method]:
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        names = ", ".join(cls.__name__ for cls in own)
        advice = f"several: {names}; write for example {reference}:{own[0].__name__}" if own else "none"
        raise ValueError(f"{reference} must define one subclass of vlm_guard.Method, it defines {advice}")
    return own[0]
