"""mypy finds nothing in the package as users import it; see check_types.py for what is special about that."""

import re
import tomllib
from pathlib import Path

import check_types
import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
IGNORE = re.compile(r"#\s*type:\s*ignore(?P<code>\[[a-z, -]+\])?")
# What would make an error disappear without anybody having looked at it.
BLANKET = {
    "ignore_errors",
    "follow_imports",
    "follow_imports_for_stubs",
    "disable_error_code",
    "allow_untyped_globals",
    "exclude",
    "files",
}


@pytest.mark.slow
def test_the_package_has_no_type_errors():
    code, printed = check_types.check()
    assert check_types.errors_of(printed) == [] and code == 0, printed


@pytest.mark.slow
def test_an_error_across_rooms_is_seen(tmp_path):
    """A method that hands a wrong thing to a kernel, in a package of links like the real one."""
    package = check_types.link_package(tmp_path)
    (package / "methods").unlink()
    (package / "methods").mkdir()
    for entry in (ROOT / "methods").iterdir():
        (package / "methods" / entry.name).symlink_to(entry)
    (package / "methods" / "wrong.py").write_text(
        "from vlm_guard.kernels.attention_edit import AttentionEdit\n\nedit = AttentionEdit(bias='no tensor')\n",
        encoding="utf-8",
    )
    code, printed = check_types.run_mypy(tmp_path, "--module", "vlm_guard.methods.wrong")
    (error,) = check_types.errors_of(printed)
    assert code == 1 and check_types.room_of(error) == "methods" and "[arg-type]" in error


def test_no_setting_hides_errors():
    assert SETTINGS["strict_optional"] is True
    for part in (SETTINGS, *SETTINGS["overrides"]):
        assert not BLANKET & part.keys(), part
    for part in SETTINGS["overrides"]:
        named = part["module"]
        assert part.keys() == {"module", "ignore_missing_imports"}
        assert not [name for name in named if name.startswith(("*", check_types.PACKAGE))], "only libraries, by name"
    assert "ignore_missing_imports" not in SETTINGS


@pytest.mark.parametrize("folder", [check_types.PACKAGE, *check_types.MAPPED])
def test_an_ignored_error_has_a_code(folder):
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        for match in IGNORE.finditer(line)
        if match["code"] is None
    ]
    assert not found


def test_the_linked_package_is_the_installed_one(tmp_path):
    """Every package that setuptools is told of, and nothing beside it, can be found in the links."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    check_types.link_package(tmp_path)
    for name in project["tool"]["setuptools"]["packages"]:
        assert (tmp_path / name.replace(".", "/") / "__init__.py").is_file(), name
    mapped = {name.partition(".")[2] for name in project["tool"]["setuptools"]["package-dir"]} - {""}
    assert mapped == set(check_types.MAPPED)
