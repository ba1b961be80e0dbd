"""Tasks as rows: for the command line, docs/tasks.md and tests."""

from typing import Any

from pydantic.fields import FieldInfo

from vlm_guard.eval.tasks.base import Task
from vlm_guard.eval.tasks.shared.registry import DEFAULT_TASKS, task_class, task_files, task_names
from vlm_guard.eval.tasks.shared.settings import flag_of


def describe_task(name: str) -> dict[str, Any]:
    """Name, help, source, data, whether it is asked by default, tables' metrics and settings of a task, JSON-able.

    Raises:
        ValueError: there is no such task.
    """
    cls = task_class(name)
    return {
        "name": name,
        "help": cls.help,
        "source": cls.source,
        "data": cls.data_help,
        "data_kinds": list(cls.data_kinds),
        "default": name in DEFAULT_TASKS,
        "columns": {column.metric: column.label for column in cls.columns},
        "settings": [_describe_setting(cls, key, field) for key, field in cls.Settings.model_fields.items()],
    }


def _describe_setting(cls: type[Task], key: str, field: FieldInfo) -> dict[str, Any]:
    default = field.get_default(call_default_factory=True)
    return {
        "name": key,
        "option": flag_of(field) or f"--set {cls.name}.{key}=",
        "default": [str(item) for item in default] if isinstance(default, list) else default,
        "help": field.description or "",
    }


def described_tasks() -> list[dict[str, Any]]:
    """All tasks."""
    return [describe_task(name) for name in task_names()]


def shown_default(value: Any) -> str:
    """A default as people read it."""
    return ",".join(value) if isinstance(value, list) else "" if value is None else str(value)


def tasks_markdown() -> str:
    """The table of docs/tasks.md, and each task's settings; of the tasks that come with this package."""
    tasks = [describe_task(name) for name in task_names() if name in task_files()]
    lines = ["| task | what is measured | data | source |", "|---|---|---|---|"]
    lines += [f"| `{task['name']}` | {task['help']} | {_cell(task['data'])} | {task['source']} |" for task in tasks]
    for task in tasks:
        columns = ", ".join(f"`{name}`" for name in task["columns"])
        lines += ["", f"**`{task['name']}`** in tables: {columns}", "", "| setting | option | default | what it is |"]
        lines.append("|---|---|---|---|")
        for item in task["settings"]:
            cells = (f"`{item['name']}`", f"`{item['option']}`", _cell(shown_default(item["default"])), item["help"])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
