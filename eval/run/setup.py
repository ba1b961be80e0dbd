"""Setting up a run: data, model, tasks and methods, all checked before any time is spent on answers."""

import copy
from dataclasses import asdict, dataclass
from typing import Any

from vlm_guard.eval.data.datasets import KINDS, EvaluationData, hash_lines, open_dataset
from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.environment import decisive_versions
from vlm_guard.eval.run.models import LoadedModel, load_model
from vlm_guard.eval.run.prompting import PromptTemplate, find_template
from vlm_guard.eval.run.protocols import deviations, find_protocol, require_needs
from vlm_guard.eval.run.settings import MethodSpec, RunSettings, parse_methods
from vlm_guard.eval.tasks.base import Sample, Task
from vlm_guard.eval.tasks.shared.registry import data_kinds, task_class
from vlm_guard.guard import Guard, wrap


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one task that are asked together.

    Attributes:
        index: number of the batch in the run; decides the seed.
        place: number of the batch in its task; decides the process and which method is first.
        task: what is asked.
        samples: the prompts.
    """

    index: int
    place: int
    task: Task
    samples: tuple[Sample, ...]


@dataclass(kw_only=True, eq=False)
class Evaluation:
    """A run that is set up: data, model, tasks and batches. Made by `set_up`."""

    settings: RunSettings
    data: EvaluationData
    loaded: LoadedModel
    reading_processor: Any
    template: PromptTemplate
    tasks: dict[str, Task]
    batches: list[Batch]
    specs: list[MethodSpec]
    guards: list[Guard]
    group: ProcessGroup

    def settings_of(self, method: int) -> dict[str, Any]:
        """The fingerprint of one method's answers."""
        settings = self.settings
        profile = self.guards[method].target.profile
        return {
            "data": self.data.describe(),
            "tasks": {name: task.describe() for name, task in self.tasks.items()},
            "template": self.template.describe(),
            "decoding": self.decoding(),
            "model": self.loaded.identity,
            "methods": [bound.method.describe() for bound in self.guards[method].methods],
            "attention_backend": settings.attention_backend,
            "profile": None if profile is None else asdict(profile),
            "versions": decisive_versions(),
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

    def decoding(self) -> dict[str, Any]:
        """How tokens are chosen: ours, and what the checkpoint's own generation settings add."""
        own = self.loaded.model.generation_config.to_diff_dict()
        replaced = {"do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "max_length"}
        kept = {
            key: value
            for key, value in own.items()
            if key not in replaced and key != "transformers_version" and not key.startswith("_")
        }
        ours = self.settings.decoding.model_dump()
        return {**ours, "seed": self.settings.seed, "batch_size": self.settings.batch_size, "checkpoint": kept}


def set_up(settings: RunSettings, group: ProcessGroup | None = None) -> Evaluation:
    """Open the data, load the model and try every method on it, before any time is spent on answers.

    Raises:
        ValueError, FileNotFoundError: a setting is wrong or something is missing; the message says what.
    """
    group = group if group is not None else ProcessGroup(cpu=settings.device == "cpu")
    specs = parse_methods(settings.methods, settings.options)
    with group.main_first():
        data = open_data(settings)
    tasks = {name: task_class(name)(data, settings.of_task(name), settings.seed) for name in settings.tasks}
    device = group.device if settings.device == "auto" and group.device is not None else settings.device
    loaded = load_model(
        settings.model,
        dtype=settings.dtype,
        device=device,
        revision=settings.revision,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
    )
    guards = []
    for spec in specs:
        with wrap(
            loaded.model, loaded.processor, list(spec.methods), attention_backend=settings.attention_backend
        ) as guard:
            guards.append(guard)
    return Evaluation(
        settings=settings,
        data=data,
        loaded=loaded,
        # The next batch is prepared in another thread. Tokenizers must not be shared with it: setting the padding of
        # one that is encoding or decoding elsewhere fails ("Already borrowed").
        reading_processor=copy.deepcopy(loaded.processor),
        template=find_template(loaded.processor, settings.template),
        tasks=tasks,
        batches=cut_batches(tasks, settings.batch_size),
        specs=specs,
        guards=guards,
        group=group,
    )


def open_data(settings: RunSettings) -> EvaluationData:
    """The data of a run: scenes, a COCO folder, pictures without labels, or what one of its tasks opens itself.

    Raises:
        ValueError, FileNotFoundError: there is no such data, or a task cannot be asked about it; the message says what
            to give instead.
    """
    if settings.protocol is not None:
        require_needs(find_protocol(settings.protocol), settings)
    kind, _, place = settings.data.partition(":")
    opened_by_tasks = {} if kind in KINDS else data_kinds()
    if kind not in KINDS and kind not in opened_by_tasks:
        others = "".join(f", {task.data_help.split(',')[0]} (task {task.name})" for task in opened_by_tasks.values())
        raise ValueError(
            f"unknown data {settings.data!r}; give scenes:SPLIT[:SEED], coco:FOLDER, folder:FOLDER{others}"
        )
    for name in settings.tasks:
        task = task_class(name)
        if kind not in task.data_kinds:
            raise ValueError(
                f"the task {name} cannot be asked about --data {settings.data}; it needs {task.data_help} (vlm-guard "
                f"tasks {name} says more)"
            )
    if kind in KINDS:
        return open_dataset(
            settings.data,
            settings.image_count,
            mode=settings.chair_mode,
            image_list=settings.image_list,
            split=settings.split,
            only=_asked_images(settings) if kind == "coco" and settings.image_list is None else None,
        )
    for option, value in (("--image-list", settings.image_list), ("--split", settings.split)):
        if value is not None:
            raise ValueError(f"{option} is for MSCOCO folders and scenes; --data {kind}:... takes --count")
    opener = opened_by_tasks[kind]
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


def cut_batches(tasks: dict[str, Task], size: int) -> list[Batch]:
    """The batches of all tasks, mixed evenly: then the time left can be told from the time gone at any moment."""
    found: list[tuple[float, int, Task, tuple[Sample, ...]]] = []
    for task in tasks.values():
        samples = task.samples()
        groups = [tuple(samples[begin : begin + size]) for begin in range(0, len(samples), size)]
        found += [((place + 0.5) / len(groups), place, task, group) for place, group in enumerate(groups)]
    found.sort(key=lambda entry: entry[0])
    return [
        Batch(index=index, place=place, task=task, samples=group) for index, (_, place, task, group) in enumerate(found)
    ]
