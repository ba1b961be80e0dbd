"""How tasks are found by name: files and folders of eval/tasks, entry points, classes registered by hand."""

import difflib
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TypeVar

from vlm_guard.eval.tasks.base import Task

ENTRY_POINT_GROUP = "vlm_guard.tasks"
DEFAULT_TASKS = ("chair", "pope")
"""What a run asks when no task is named."""

_NOT_TASKS = ("base",)
_REGISTERED: dict[str, type[Task]] = {}
TaskType = TypeVar("TaskType", bound=type[Task])


def register_task(name: str) -> Callable[[TaskType], TaskType]:
    """Class decorator that makes a task known by `name` (lower case, digits and underscores).

    Raises:
        ValueError: the name is malformed or taken by another class.
    """

    def add(cls: TaskType) -> TaskType:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"task name {name!r} must be lower case letters, digits and underscores")
        known = _REGISTERED.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"task name {name!r} is already taken by {known.__module__}.{known.__qualname__}")
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return add


@cache
def task_files() -> dict[str, Path]:
    """The built-in tasks by name, a file or a folder with `task.py` each, without importing them."""
    found: dict[str, Path] = {}
    for folder in import_module("vlm_guard.eval.tasks").__path__:
        for path in Path(folder).glob("[!_]*"):
            if path.suffix == ".py" and path.stem not in _NOT_TASKS:
                found[path.stem] = path
            elif (path / "task.py").is_file():
                found[path.name] = path / "task.py"
    return dict(sorted(found.items()))


def task_names() -> list[str]:
    """All names that `--task` understands, those asked by default first."""
    offered = {entry.name for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return sorted({*task_files(), *offered, *_REGISTERED}, key=listing_order)


def listing_order(name: str) -> tuple[int, str]:
    """Where a task stands among others: those asked by default first, the rest by name."""
    return (DEFAULT_TASKS.index(name) if name in DEFAULT_TASKS else len(DEFAULT_TASKS), name)


def task_class(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        ValueError: unknown name; the message suggests the nearest one.
    """
    if name not in _REGISTERED:
        built_in = task_files().get(name)
        if built_in is not None:
            import_module(f"vlm_guard.eval.tasks.{name}" + (".task" if built_in.name == "task.py" else ""))
        else:
            for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
                if entry.name == name:
                    entry.load()
    if name not in _REGISTERED:
        near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown task {name!r}.{hint} Available: {', '.join(task_names())}; one of another package is found "
            "once that package is installed"
        )
    return _REGISTERED[name]


def data_kinds() -> dict[str, type[Task]]:
    """The kinds of `--data` that tasks open themselves, each with the task that opens it."""
    classes = [task_class(name) for name in task_names()]
    return {cls.own_data: cls for cls in classes if cls.own_data is not None}
