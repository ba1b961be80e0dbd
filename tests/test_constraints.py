"""constraints.txt holds one release of every named dependency, and the package index can serve them together.

What the index says is read by uv, which takes only the metadata out of each wheel; pip, where an index does not offer
the metadata by itself, downloads gigabytes of GPU libraries to answer the same question.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# lmms-eval pins nothing of ours and was never run here with its own dependencies: no release of it is tested. vLLM
# wants an older transformers than the constraints pin; docs/serving.md has an environment of its own for it.
UNPINNED = {"lmms-eval", "vllm"}
CHOICES = [(), ("dev",), ("demo",), ("models",), tuple(sorted(set(EXTRAS) - {"lmms", "vllm"}))]


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(item.name): item for item in requirements}


def named_requirements():
    for text in (*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)):
        yield Requirement(text)


def resolve(folder, constraints, extras):
    """Ask the plain index, with no local wheels, settings or installed packages; (exit code, errors, pins by name)."""
    chosen = [argument for extra in extras for argument in ("--extra", extra)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--no-annotate", "--no-header", "--quiet"]
    command += ["--constraint", str(constraints), "--output-file", str(folder / "resolved.txt"), *chosen]
    done = subprocess.run(
        [*command, str(ROOT / "pyproject.toml")], env=environment, capture_output=True, text=True, timeout=300
    )
    found = {}
    if done.returncode == 0:
        for line in (folder / "resolved.txt").read_text(encoding="utf-8").splitlines():
            name, _, version = line.partition("==")
            found[canonicalize_name(name)] = version.partition(" ")[0]
    return done.returncode, done.stderr, found


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Skips where no package index answers; a contradiction between packages is no reason to skip."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "one.in").write_text("packaging>=24\n")
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--quiet", str(folder / "one.in")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode != 0 and re.search("fetch|connect|dns|timed out", done.stderr, re.IGNORECASE):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def test_every_named_dependency_has_one_release_that_is_allowed():
    found = pins()
    missing = {canonicalize_name(item.name) for item in named_requirements()} - set(found) - UNPINNED
    assert not missing, f"constraints.txt lacks {sorted(missing)}"
    for item in named_requirements():
        if item.name not in UNPINNED:
            (pin,) = found[canonicalize_name(item.name)].specifier
            assert pin.operator == "==" and item.specifier.contains(pin.version), f"{item} excludes {pin}"


def test_the_package_does_not_choose_triton():
    """Each build of torch demands its own; a name or a floor beside it can only contradict or replace that one."""
    assert not [text for text in PROJECT["dependencies"] if "triton" in text]
    assert [str(item.specifier) for item in named_requirements() if item.name == "triton"] == [""]


@pytest.mark.slow
@pytest.mark.parametrize("extras", CHOICES, ids=lambda extras: "+".join(extras) or "nothing")
def test_the_constraints_resolve_against_the_plain_index(index, tmp_path, extras):
    code, errors, found = resolve(tmp_path, ROOT / "constraints.txt", extras)
    assert code == 0, errors
    wrong = {
        name: found[name] for name, pin in pins().items() if name in found and f"=={found[name]}" != str(pin.specifier)
    }
    assert found["torch"] == "2.13.0" and not wrong


@pytest.mark.slow
def test_a_contradiction_is_noticed(index, tmp_path):
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    changed = tmp_path / "constraints.txt"
    changed.write_text(text.replace("triton==3.7.1", "triton==3.9.0"))
    code, errors, _ = resolve(tmp_path, changed, ("dev",))
    assert code != 0 and "torch" in errors and "triton" in errors
