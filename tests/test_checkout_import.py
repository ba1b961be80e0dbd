"""`import vlm_guard` is the package wherever it is said: beside a checkout named vlm_guard, in it, and elsewhere.

Each way is tried with the package installed in development mode, as here, and with nothing installed: without the
`site` module Python reads no .pth files, and the libraries are named by PYTHONPATH.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vlm_guard", "methods", "kernels", "eval", "demo")
CHECK = """
import sys, importlib
from pathlib import Path
import vlm_guard
names = [f"vlm_guard.{name}" for name in ("methods", "kernels", "eval", "demo", "cli")]
parts = [importlib.import_module(name) for name in names]
assert [part.__name__ for part in parts] == names
for module in (vlm_guard, *parts):
    assert Path(sys.argv[1]) in Path(module.__file__).parents, module
assert vlm_guard is sys.modules["vlm_guard"] and vlm_guard.__spec__.name == "vlm_guard"
for wrong in ("vlm_guard.vlm_guard", "vlm_guard.tests", "vlm_guard.docs", "vlm_guard.setup"):
    try:
        importlib.import_module(wrong)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{wrong} can be imported")
print("fine")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout by its usual name, with what Python reads of it."""
    root = tmp_path_factory.mktemp("home") / "vlm_guard"
    root.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=lambda folder, names: _unread(folder, names))
    shutil.copy(ROOT / "__init__.py", root)
    return root


def _unread(folder, names):
    return [name for name in names if name == "__pycache__" or ((Path(folder) / name).is_file() and name[-3:] != ".py")]


def python(arguments, cwd, *, installed):
    libraries = [entry for entry in sys.path if "site-packages" in entry]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if not installed:
        arguments, environment["PYTHONPATH"] = ["-S", *arguments], os.pathsep.join(libraries)
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not installed"])
@pytest.mark.parametrize("place", ["beside", "in the root"])
def test_a_script_near_the_checkout_uses_it(checkout, place, installed):
    folder = checkout.parent if place == "beside" else checkout
    script = folder / "users_script.py"
    script.write_text(CHECK)
    assert "fine" in python([str(script), str(checkout)], checkout.parent, installed=installed)


def test_a_script_elsewhere_uses_the_installed_one(tmp_path):
    script = tmp_path / "users_script.py"
    script.write_text(CHECK)
    assert "fine" in python([str(script), str(ROOT)], tmp_path, installed=True)


def test_nothing_is_found_elsewhere_when_nothing_is_installed(tmp_path):
    """Otherwise the cases above with nothing installed would show nothing."""
    with pytest.raises(AssertionError, match="No module named 'vlm_guard'"):
        python(["-c", "import vlm_guard"], tmp_path, installed=False)


@pytest.mark.parametrize(
    ("place", "installed"),
    [("root", True), ("root", False), ("parent", True), ("parent", False), ("elsewhere", True)],
)
@pytest.mark.parametrize("module", ["vlm_guard", "vlm_guard.eval"])
def test_python_m(checkout, tmp_path, module, place, installed):
    cwd = {"root": checkout, "parent": checkout.parent, "elsewhere": tmp_path}[place]
    assert "Usage" in python(["-m", module, "--help"], cwd, installed=installed)


def test_the_public_names_come_from_beside_the_checkout(checkout):
    """What a stranger meets first; loads torch, so once."""
    names = "from vlm_guard import wrap, Guard; from vlm_guard.method.registry import method_names"
    code = f"{names}; print(len(method_names()), wrap)"
    assert int(python(["-c", code], checkout.parent, installed=False).split()[0]) > 10
