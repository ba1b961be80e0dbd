"""The house keeps its order: arrows between rooms go one way, private names stay at home, files stay small.

All of this is read from the text of the files; the order itself stands in docs/tables/rooms.toml.
"""

import ast
import tomllib

import pytest

from house import PACKAGE, ROOMS, ROOT, SIBLINGS, Module, modules, room_of, rooms_in_order

MODULES = list(modules().values())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LONGEST_FILE = 400
MOST_FILES = 12


def may_import(module):
    """The rooms and leaves that a module may import, besides its own room."""
    limits = {name: rooms for name, rooms in ROOMS["only"].items() if module.name.startswith(f"{PACKAGE}.{name}")}
    if limits:
        return set(limits[max(limits, key=len)])
    order = ROOMS["order"]
    if module.room in ROOMS["leaves"]:
        return set(ROOMS["leaves"])
    places = [index for index, line in enumerate(order) if module.room in line]
    assert len(places) == 1, f"{module.room} has no place in docs/tables/rooms.toml, or two"
    place = places[0]
    return {room for line in order[:place] for room in line} | set(ROOMS["leaves"])


def wrong_arrows(module):
    """(file, imported module) for each import that runs and that the order does not allow."""
    if module.path.name == "__main__.py" or module.name == PACKAGE:
        return set()
    allowed = {module.room, PACKAGE, *may_import(module)}
    return {
        (str(module.path.relative_to(ROOT)), found.module)
        for found in module.imports()
        if not found.types_only and room_of(found.module) not in allowed
    }


def module_of(text, name):
    return Module(name, ROOT / "anywhere.py", ast.parse(text))


def test_arrows_between_rooms_go_one_way():
    found = set().union(*(wrong_arrows(module) for module in MODULES))
    assert not found, f"against the order in docs/tables/rooms.toml: {sorted(found)}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vlm_guard.families.new", "from vlm_guard.method.base import Method"),
        ("vlm_guard.families.new", "def late():\n    import vlm_guard.runtime.reading"),
        ("vlm_guard.contrast.new", "from vlm_guard import wrap"),
        ("vlm_guard.contrast.new", "from vlm_guard import guard"),
        ("vlm_guard.contrast.new", "from ..guard import wrap"),
        ("vlm_guard.bench.new", "from vlm_guard.calibration.run import calibrate"),
        ("vlm_guard.methods.new", "from vlm_guard.runtime.reading import Reading"),
        ("vlm_guard.kernels.new", "from vlm_guard.environment import version_of"),
        ("vlm_guard.environment", "from vlm_guard.kernels.reference import reference"),
        ("vlm_guard.families.new", "if TYPE_CHECKING:\n    pass\nelse:\n    from vlm_guard.guard import Guard"),
    ],
)
def test_an_arrow_that_goes_the_wrong_way_is_seen(name, text):
    assert wrong_arrows(module_of(text, name))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "vlm_guard.families.new",
            "if TYPE_CHECKING:\n    from vlm_guard.guard import Guard\nimport torch",
        ),
        ("vlm_guard.families.new", "from vlm_guard.families import profiles\nfrom vlm_guard import whole_files"),
        ("vlm_guard.kernels.benchmark.new", "from vlm_guard.environment import version_of"),
        ("vlm_guard.demo.new", "from vlm_guard.eval.run import ask\nimport torch\nfrom vlm_guard import __version__"),
    ],
)
def test_an_arrow_that_goes_the_right_way_is_left_alone(name, text):
    assert not wrong_arrows(module_of(text, name))


def test_methods_import_the_public_face_and_no_deeper():
    deep = {
        (str(module.path.relative_to(ROOT)), found.module)
        for module in MODULES
        if module.room == "methods" and module.name != f"{PACKAGE}.methods"
        for found in module.imports()
        if found.module.startswith(f"{PACKAGE}.method.")
    }
    assert not deep, f"take these from vlm_guard.method: {sorted(deep)}"


def test_every_room_is_in_the_order_and_says_what_it_is():
    on_disk = {module.room for module in MODULES} - {PACKAGE, "__main__"}
    assert on_disk == set(rooms_in_order()), "docs/tables/rooms.toml and the folders differ"
    for room in rooms_in_order():
        docstring = modules()[f"{PACKAGE}.{room}"].docstring
        folder = modules()[f"{PACKAGE}.{room}"].path.name == "__init__.py"
        assert docstring and (not folder or "May import:" in docstring), (
            f"{room}: say what lives there, 'May import: ...'"
        )


def test_every_file_says_what_it_is():
    silent = [str(module.path.relative_to(ROOT)) for module in MODULES if not module.docstring]
    assert not silent, f"without a docstring: {silent}"


def test_the_package_folder_shows_rooms_and_files_stay_small():
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= MOST_FILES
    folders = [ROOT / name for name in (PACKAGE, *SIBLINGS, "tests", "docs", "examples")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in folder.rglob("*.py")
    }
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}
    assert not long, f"longer than {LONGEST_FILE} lines, so divide: {long}"


def test_the_packages_that_are_installed_are_the_folders_on_disk():
    folders = {module.name for module in MODULES if module.path.name == "__init__.py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def private(name):
    return name.startswith("_") and not name.startswith("__")


def running_nodes(tree):
    """All of a file but what is only there for a type checker, such as what it is to know of a library's classes."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            left += node.orelse
        else:
            left += ast.iter_child_nodes(node)


def defined_names(tree):
    """Names that a file gives: functions, classes, variables and attributes, wherever they are set."""
    for node in running_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def private_names_used(module):
    """Private names that a file takes from something that is not itself: (line, name)."""
    for found in module.imports():
        if private(found.name):
            yield found.line, found.name
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.lineno, node.attr


def home_folder(module):
    """The room of a file, or the method's folder: two methods are strangers to each other, too."""
    return module.name.rpartition(".")[0] if module.room == "methods" else module.room


def strangers_names(module, owners):
    """Private names of other rooms that a file uses. `owners` has the rooms in which each name is defined."""
    return [
        f"{module.path.name}:{line} uses {name}, which is private to {', '.join(sorted(owners[name]))}"
        for line, name in private_names_used(module)
        if name in owners and home_folder(module) not in owners[name]
    ]


def owners_of_private_names():
    owners = {}
    for module in MODULES:
        for name in defined_names(module.tree):
            if private(name):
                owners.setdefault(name, set()).add(home_folder(module))
    return owners


def test_private_names_stay_in_their_room():
    owners = owners_of_private_names()
    assert not [line for module in MODULES for line in strangers_names(module, owners)]


@pytest.mark.parametrize(
    "text", ["from vlm_guard.guard import _secret", "def late(guard):\n    guard._secret()", "guard._secret = 1"]
)
def test_a_private_name_of_another_room_is_seen(text):
    assert strangers_names(module_of(text, "vlm_guard.demo.new"), {"_secret": {"guard"}})
    assert not strangers_names(module_of(text, "vlm_guard.guard"), {"_secret": {"guard"}})
    assert not strangers_names(module_of("self._secret", "vlm_guard.demo.new"), {"_secret": {"guard"}})


def test_a_librarys_name_told_to_the_type_checker_is_not_ours():
    text = "if TYPE_CHECKING:\n    class Model:\n        _theirs: int\nelse:\n    _own = 1\nclass A:\n    _also = 2"
    assert {name for name in defined_names(ast.parse(text)) if private(name)} == {"_own", "_also"}


def writes_into_the_running_guard(module):
    """Lines that set an attribute of something called guard or reading."""
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)):
            continue
        if ast.unparse(node.value).rpartition(".")[2] in ("guard", "reading"):
            yield f"{module.path.name}:{node.lineno} sets {ast.unparse(node)}"


def test_nobody_writes_into_the_guard_or_the_reading_from_outside():
    """`runtime` owns the reading, the guard starts and ends its trace; nobody else sets anything in either."""
    outside = [module for module in MODULES if module.room not in ("runtime", "guard")]
    assert not [line for module in outside for line in writes_into_the_running_guard(module)]
    assert list(writes_into_the_running_guard(module_of("self.guard.last = 1", "vlm_guard.demo.new")))
