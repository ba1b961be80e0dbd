"""What is measured: one file or folder a benchmark, with its questions, its scorer and its columns.

Authors of tasks find all they need here. May import: eval.data, eval.scenes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_guard.eval.tasks.base import Record, Sample, Task
    from vlm_guard.eval.tasks.shared.metric import Column, Metric, harmonic, ratio, share
    from vlm_guard.eval.tasks.shared.own_data import question_data
    from vlm_guard.eval.tasks.shared.registry import register_task
    from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting

# Resolved on first use: the data sets import parts of tasks, so this file must come without any.
_PUBLIC = {
    "Record": "base",
    "Sample": "base",
    "Task": "base",
    "Column": "shared.metric",
    "Metric": "shared.metric",
    "harmonic": "shared.metric",
    "ratio": "shared.metric",
    "share": "shared.metric",
    "question_data": "shared.own_data",
    "register_task": "shared.registry",
    "TaskSettings": "shared.settings",
    "setting": "shared.settings",
}

__all__ = [
    "Column",
    "Metric",
    "Record",
    "Sample",
    "Task",
    "TaskSettings",
    "harmonic",
    "question_data",
    "ratio",
    "register_task",
    "setting",
    "share",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"vlm_guard.eval.tasks.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
