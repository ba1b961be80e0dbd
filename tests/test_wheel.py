"""What is installed: the wheel holds the package with its data and nothing else, and works where only it is.

The wheel is built from exactly what the Dockerfile copies; Docker itself is not run here.
"""

import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from house import modules

ROOT = Path(__file__).resolve().parents[1]
# What the package reads where it is installed: one file of every kind, the others of its kind are beside it.
DATA = (
    "vlm_guard/py.typed",
    "vlm_guard/builtin/model.safetensors",
    "vlm_guard/builtin/chat_template.jinja",
    "vlm_guard/builtin/tokenizer.json",
    "vlm_guard/smol_model/trained/trained.safetensors",
    "vlm_guard/profiles/llava-1.5-7b.json",
    "vlm_guard/demo/page.js",
    "vlm_guard/demo/style.css",
    "vlm_guard/eval/report/report_page.html",
    "vlm_guard/eval/scenes/atlas.png",
    "vlm_guard/eval/data/coco_objects.json",
)
# What only makes documents, or only tests.
UNWANTED = re.compile(r"(^|/)(docs|tests|examples|tables|results)/|test_|conftest|/eval/results|\.ci/")

pytestmark = pytest.mark.slow


def dockerfile_lines(word):
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split()[1:] for line in text.splitlines() if line.startswith(f"{word} ")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing an earlier build left in `build/` gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for *names, _ in dockerfile_lines("COPY"):
        for name in names:
            if (ROOT / name).is_dir():
                copytree(ROOT / name, source / name, ignore=ignore_patterns("__pycache__"))
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", str(out), str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not set(DATA) - names
    assert not [name for name in names if UNWANTED.search(name)]
    code = {name for name in names if name.endswith(".py")}
    wanted = {
        module.name.replace(".", "/") + ("/__init__.py" if module.path.name == "__init__.py" else ".py")
        for module in modules().values()
    }
    assert code == wanted
    for folder, kept in (("vlm_guard/profiles", "*.json"), ("vlm_guard/builtin", "*"), ("eval/data", "*.json")):
        installed = folder if folder.startswith("vlm_guard") else f"vlm_guard/{folder}"
        assert {f"{installed}/{path.name}" for path in (ROOT / folder).glob(kept)} <= names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment of its own with the wheel, and the libraries (not the package) of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")

    def run(name, *arguments):
        """A command of this environment, from a folder where no checkout is; what it printed."""
        done = subprocess.run(
            [str(python.parent / name), *map(str, arguments)], capture_output=True, text=True, cwd=folder, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_an_installed_wheel_works_without_the_checkout(installed):
    code = "import vlm_guard, vlm_guard.kernels; print(vlm_guard.__file__); print(vlm_guard.kernels.__file__)"
    assert all("/env/lib/" in line for line in installed("python", "-c", code).splitlines())
    report = json.loads(installed("vlm-guard", "doctor", "--json"))
    assert {"var", "icd", "vhr"} <= set(report["vlm_guard"]["methods"].split(", "))
    assert "llava-1.5-7b" in report["vlm_guard"]["profiles"]


# Modules that vLLM calls need vLLM itself, which no environment of the tests has to have.
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (name.startswith("vlm_guard.serving.vllm.") and error.name.partition(".")[0] == "vllm"):
            raise
print("all")
"""


def test_every_module_of_an_installed_wheel_can_be_imported(installed):
    """All but those that start something, or belong to an extra that is not there."""
    names = [name for name in modules() if not name.endswith("__main__") and "lmms_eval_plugin.models." not in name]
    assert installed("python", "-c", IMPORT_ALL, *names).strip().endswith("all")


def test_the_dockerfile_installs_what_is_tested():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    words = [word for line in dockerfile_lines("RUN") for word in line]
    assert {word for word in words if "==" in word} and {word for word in words if "==" in word} <= set(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (python,) = dockerfile_lines("FROM")
    assert python == [f"python:{project['requires-python'].removeprefix('>=')}-slim"]
