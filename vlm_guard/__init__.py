"""vlm_guard: fewer hallucinations from the Hugging Face vision-language model you already load."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# `methods/`, `kernels/`, `eval/` and `demo/` stand beside this folder in a checkout. An installed package maps
# them to sub-packages; a checkout that is run without being installed needs them found where they stand.
_SIBLINGS = ("methods", "kernels", "eval", "demo")
_root = Path(__file__).resolve().parents[1]


class _SiblingFinder:
    """Finds exactly the four sub-packages that stand beside this folder, and nothing else of the checkout's root."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """What Python's import asks every finder."""
        package, _, part = name.rpartition(".")
        if package != __name__ or part not in _SIBLINGS:
            return None
        folder = _root / part
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if all((_root / part / "__init__.py").is_file() for part in _SIBLINGS):
    sys.meta_path.insert(0, _SiblingFinder)  # before an installed checkout, which may be another one

if TYPE_CHECKING:
    from vlm_guard.builtin_model import builtin
    from vlm_guard.guard import Guard, wrap
    from vlm_guard.method import Method, option, register

# Resolved on first use, so that `import vlm_guard` (and `vlm-guard --help`) does not import torch.
_PUBLIC = {
    "wrap": "vlm_guard.guard",
    "Guard": "vlm_guard.guard",
    "builtin": "vlm_guard.builtin_model",
    "Method": "vlm_guard.method",
    "option": "vlm_guard.method",
    "register": "vlm_guard.method",
}

__all__ = ["Guard", "Method", "__version__", "builtin", "option", "register", "wrap"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
