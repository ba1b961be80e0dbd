"""vlm_guard: fewer hallucinations from the Hugging Face vision-language model you already load."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# `methods/`, `kernels/`, `eval/` and `demo/` stand beside this folder in a checkout. An installed package maps
# them to sub-packages; a checkout that is run without being installed needs its root on this package's path.
_root = Path(__file__).resolve().parents[1]
if not (Path(__file__).parent / "kernels").is_dir() and (_root / "kernels" / "__init__.py").is_file():
    __path__.append(str(_root))

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
