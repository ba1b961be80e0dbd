"""The attention operation with its three edit points: reference, torch and Triton backends.

May import: nothing else of this project.
"""

if __name__ == "kernels":
    # The repository root is on sys.path, so this folder shadows Hugging Face's `kernels` package, which
    # transformers imports. Hand over to the real one when it is installed; otherwise stay empty and without
    # `__version__`, which transformers reads as "not installed".
    import sys
    from importlib import machinery, util
    from pathlib import Path

    _root = Path(__file__).resolve().parents[1]
    _elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _root]
    _spec = machinery.PathFinder.find_spec("kernels", _elsewhere)
    if _spec is not None and _spec.loader is not None and _spec.origin:
        _module = util.module_from_spec(_spec)
        sys.modules["kernels"] = _module
        _spec.loader.exec_module(_module)
