"""The root of a checkout, not the package: the package is `vlm_guard/` in here.

A checkout is usually named `vlm_guard` too. Python takes it for the package when it lies beside a script, or in the
folder where `python -m` is called; this file then hands over to the package. It is not part of what is installed.
"""

if __name__ == "vlm_guard":
    import sys
    from importlib import util
    from pathlib import Path

    _package = Path(__file__).resolve().parent / "vlm_guard"
    _spec = util.spec_from_file_location(__name__, _package / "__init__.py", submodule_search_locations=[str(_package)])
    if _spec is None or _spec.loader is None:
        raise ImportError(f"the package is missing in {_package}")
    _module = util.module_from_spec(_spec)
    sys.modules[__name__] = _module
    _spec.loader.exec_module(_module)
