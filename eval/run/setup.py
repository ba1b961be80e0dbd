"""Setting up a run: data, model, tasks and methods, all checked before any time is spent on answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_guard.eval.data.datasets import KINDS, EvaluationData, hash_lines, open_dataset
from vlm_guard.eval.run.batches import Batch, cut_batches
from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.early_checks import check_data, refuse_mistakes
from vlm_guard.eval.run.engines.base import Engine
from vlm_guard.eval.run.engines.endpoint import Endpoint
from vlm_guard.eval.run.engines.endpoint_settings import base_address, check_settings
from vlm_guard.eval.run.protocols import deviations, find_protocol, require_needs
from vlm_guard.eval.run.settings import MethodSpec, RunSettings, parse_methods
from vlm_guard.eval.tasks.base import Task
from vlm_guard.eval.tasks.shared.registry import data_kinds, task_class


@dataclass(kw_only=True, eq=False)
class Evaluation:
    """A run that is set up: data, model, tasks and batches. Made by `set_up`."""

    settings: RunSettings
    data: EvaluationData
    tasks: dict[str, Task]
    batches: list[Batch]
    engine: Engine
    group: ProcessGroup

    @property
    def specs(self) -> Sequence[MethodSpec]:
        """The methods of the run."""
        return self.engine.specs

    def settings_of(self, method: int) -> dict[str, Any]:
        """The fingerprint of one method's answers."""
        return {
            "data": self.data.describe(),
            "tasks": {name: task.describe() for name, task in self.tasks.items()},
            **self.engine.fingerprint(method),
        }

    def protocol(self) -> dict[str, Any] | None:
        """The published protocol of this run and what it does otherwise, or None without one."""
        if self.settings.protocol is None:
            return None
        protocol = find_protocol(self.settings.protocol)
        changes = deviations(protocol, self.settings, self.data.images, hash_lines(sorted(self.data.images)))
        return {"name": protocol.name, "source": protocol.source, "changes": changes}

    def plan(self) -> dict[str, int]:
        """How many samples of every task each method is asked."""
        planned = dict.fromkeys(self.tasks, 0)
        for batch in self.batches:
            planned[batch.task.name] += len(batch.samples)
        return planned


def set_up(
    settings: RunSettings,
    group: ProcessGroup | None = None,
    opened: Callable[[EvaluationData, dict[str, Task]], None] | None = None,
) -> Evaluation:
    """Open the data, load the model and try every method on it, before any time is spent on answers.

    Args:
        settings: of the run.
        group: the processes that share it.
        opened: told the data and the tasks before the model is loaded, which may take minutes.

    Raises:
        ValueError, FileNotFoundError: a setting is wrong or something is missing; the message says what.
    """
    group = group if group is not None else ProcessGroup(cpu=settings.device == "cpu")
    refuse_mistakes(settings)
    check_settings(settings, group.size)
    if settings.engine == "vllm":
        from vlm_guard.eval.run.engines.vllm_settings import check_vllm_settings

        check_vllm_settings(settings, group.size)
    with group.main_first():
        data = open_data(settings)
    tasks = {name: task_class(name)(data, settings.of_task(name), settings.seed) for name in settings.tasks}
    if opened is not None:
        opened(data, tasks)
    engine = _engine(settings, group)
    return Evaluation(
        settings=settings,
        data=data,
        tasks=tasks,
        batches=cut_batches(tasks, engine.batch_size),
        engine=engine,
        group=group,
    )


def _engine(settings: RunSettings, group: ProcessGroup) -> Engine:
    """Whoever answers."""
    if settings.engine == "vllm":
        from vlm_guard.eval.run.engines.in_vllm import InVLLM

        return InVLLM(settings, parse_methods(settings.methods, settings.options))
    if settings.endpoint is not None:
        return Endpoint(settings, base_address(settings.endpoint))
    from vlm_guard.eval.run.engines.in_process import InProcess  # brings torch, which a server's client does without

    specs = parse_methods(settings.methods, settings.options)
    device = group.device if settings.device == "auto" and group.device is not None else settings.device
    return InProcess(settings, specs, device)


def open_data(settings: RunSettings) -> EvaluationData:
    """The data of a run: scenes, a COCO folder, pictures without labels, or what one of its tasks opens itself.

    Raises:
        ValueError, FileNotFoundError: there is no such data, or a task cannot be asked about it; the message says what
            to give instead.
    """
    if settings.protocol is not None:
        require_needs(find_protocol(settings.protocol), settings)
    check_data(settings)
    kind, _, place = settings.data.partition(":")
    if kind in KINDS:
        return open_dataset(
            settings.data,
            settings.image_count,
            mode=settings.chair_mode,
            image_list=settings.image_list,
            split=settings.split,
            only=_asked_images(settings) if kind == "coco" and settings.image_list is None else None,
        )
    opener = data_kinds()[kind]
    return opener.open_data(place, settings.image_count, settings.of_task(opener.name))


def _asked_images(settings: RunSettings) -> list[int] | None:
    """The images that the question files of all tasks ask about; None where a task asks about all images."""
    asked: dict[int, None] = {}
    for name in settings.tasks:
        images = task_class(name).asked_images(settings.of_task(name))
        if images is None:
            return None
        asked |= dict.fromkeys(images)
    return list(asked)
