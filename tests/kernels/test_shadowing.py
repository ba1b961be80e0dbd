"""The folder `kernels/` at the repository root must not get in the way of Hugging Face's package of that name.

With the root on sys.path, `import kernels` finds this folder first, and transformers imports `kernels` when a version
it can use is installed. A stub of such a version, with the names that transformers takes from it, stands in for the
real one.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRY = "import transformers.modeling_utils, transformers.integrations.hub_kernels as hub, vlm_guard.kernels"
CHECK = (
    TRY
    + """
import sys, kernels
assert vlm_guard.kernels.__name__ == "vlm_guard.kernels"
installed = getattr(kernels, "STUB", False)
assert installed == (sys.argv[-1] == "stub"), (kernels, sys.argv)
assert hub.is_kernels_available() == installed
print("fine")
"""
)


# Classes take any arguments and have any attribute, functions are decorators or factories of decorators.
STUB_CLASS = """
class AnyAttribute(type):
    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return cls

class {name}(metaclass=AnyAttribute):
    def __init__(self, *arguments, **keywords): pass
"""
STUB_FUNCTION = """
def {name}(*arguments, **keywords):
    return lambda given: given
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A folder with a distribution `kernels 0.18.2`, to be put on the path behind the repository."""
    folder = tmp_path_factory.mktemp("site")
    package, information = folder / "kernels", folder / "kernels-0.18.2.dist-info"
    package.mkdir(parents=True)
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    modules = {"kernels": set()}
    for module, names in names_taken_by_transformers():
        parts = module.split(".")
        for end in range(1, len(parts)):
            modules.setdefault(".".join(parts[:end]), set())
        modules.setdefault(module, set()).update(names)
    for module, names in modules.items():
        path = folder.joinpath(*module.split("."))
        path.mkdir(exist_ok=True, parents=True)
        header = "STUB = True\n__version__ = '0.18.2'\n" if module == "kernels" else ""
        (path / "__init__.py").write_text(header + "".join(stub_of(name) for name in sorted(names)))
    return folder


def stub_of(name):
    return (STUB_CLASS if name[0].isupper() else STUB_FUNCTION).format(name=name)


def names_taken_by_transformers():
    """(module, names) of every `from kernels... import ...` in transformers' sources, found without importing it."""
    source = Path(importlib.util.find_spec("transformers").origin).parent
    for path in (*source.glob("*.py"), *source.glob("integrations/*.py"), *source.glob("utils/*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "from kernels" in text else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kernels" and not node.level:
                yield node.module, {alias.name for alias in node.names}


def run(arguments, stub, cwd=ROOT):
    """Run Python with the stub (or nothing) on the path."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(stub) if stub else ""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_stub_has_what_transformers_needs(stub):
    assert "class " in (stub / "kernels" / "__init__.py").read_text()


@pytest.mark.parametrize("installed", ["stub", "nothing"])
def test_python_c_in_the_root(stub, installed):
    assert "fine" in run(["-c", CHECK, installed], stub if installed == "stub" else None)


def test_a_script_beside_the_folder(stub, tmp_path):
    """A script puts its own folder first on the path; one that names the root does what a script in the root does."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\n" + CHECK)
    assert "fine" in run([str(script), "stub"], stub)


def test_python_m_in_the_root(stub, tmp_path):
    """`python -m` puts the working directory first on the path."""
    (stub / "shadow_check.py").write_text(CHECK)
    assert "fine" in run(["-m", "shadow_check", "stub"], stub)


def test_pytest_in_the_root(stub, tmp_path):
    test = tmp_path / "test_it.py"
    test.write_text(f"def test_it():\n    {TRY}\n    import kernels\n    assert kernels.STUB\n")
    assert "1 passed" in run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(test)], stub)
