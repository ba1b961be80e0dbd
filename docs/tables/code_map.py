"""The map of the code: rooms in their order, and every file with the first sentence it says of itself."""

import re

from house import PACKAGE, ROOMS, ROOT, Module, modules

_SENTENCE_END = re.compile(r"(?<=[.?!])\s")


def rooms_markdown() -> str:
    """The order of the rooms, from the foundation upwards, and the files that every room may import."""
    lines = [f"{place}. {'; '.join(map(_named_room, line))}" for place, line in enumerate(ROOMS["order"], start=1)]
    leaves = ", ".join(f"`{_shown_path(modules()[f'{PACKAGE}.{name}'])}`" for name in ROOMS["leaves"])
    return "\n".join([*lines, "", f"Every room but `kernels` and `methods` may also import: {leaves}."]) + "\n"


def code_map_markdown() -> str:
    """One section a room: what it says of itself, and its files."""
    places = [room for line in ROOMS["order"] for room in line]
    parts = [_section(room) for room in places if _is_folder(room)]
    single = [module for module in modules().values() if module.path.parent.name == PACKAGE and _counts(module)]
    parts.insert(0, "\n".join(["## `vlm_guard/`", "", *(_line(module) for module in single), ""]))
    return "\n".join(parts)


def _section(room: str) -> str:
    door = modules()[f"{PACKAGE}.{room}"]
    inside = [module for module in modules().values() if module.name.startswith(f"{door.name}.") and _counts(module)]
    return "\n".join([f"## `{_shown_path(door)}`", "", door.docstring, "", *(_line(module) for module in inside), ""])


def _counts(module: Module) -> bool:
    """Whether the map lists a file: its room's heading has said what the room's own `__init__` says."""
    return module.name != PACKAGE and not module.path.name.startswith("__main__")


def _line(module: Module) -> str:
    return f"- `{_shown_path(module)}`: {first_sentence(module.docstring)}"


def _shown_path(module: Module) -> str:
    """The file's path in the checkout; a folder for an `__init__`."""
    path = module.path.relative_to(ROOT)
    return f"{path.parent}/" if path.name == "__init__.py" else str(path)


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, in one line and without the stop."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return _SENTENCE_END.split(paragraph)[0].rstrip(".:").replace("``", "`")


def _is_folder(room: str) -> bool:
    return modules()[f"{PACKAGE}.{room}"].path.name == "__init__.py"


def _named_room(room: str) -> str:
    module = modules()[f"{PACKAGE}.{room}"]
    return f"`{_shown_path(module)}`: {first_sentence(module.docstring)}"
