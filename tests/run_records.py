"""A finished run without a model: records and results as the runner writes them, with answers made up by tests."""

from collections.abc import Callable
from pathlib import Path

from vlm_guard.eval.data.datasets import EvaluationData, open_dataset
from vlm_guard.eval.run.records import write_records
from vlm_guard.eval.run.results import MethodResult, RunResults
from vlm_guard.eval.run.summary import MethodRecords
from vlm_guard.eval.tasks.base import Task
from vlm_guard.eval.tasks.chair.settings import ChairSettings
from vlm_guard.eval.tasks.chair.task import ChairTask
from vlm_guard.eval.tasks.pope.settings import PopeSettings
from vlm_guard.eval.tasks.pope.task import PopeTask

Answerer = Callable[[str, int, str], str]
"""From task, image id and prompt to the answer's text."""


def write_run(
    folder: Path,
    coco: Path,
    methods: dict[str, Answerer],
    *,
    prompt: str = "Please describe this image in detail.",
    count: int | None = None,
    skipped: dict[str, tuple[int, ...]] | None = None,
    tasks: list[Task] | None = None,
    **changes,
) -> RunResults:
    """Write a run of made-up answers and return its results; `changes` go on top of the results' fields.

    The tasks are CHAIR and POPE on the COCO folder, or the given ones with their own data.
    """
    data = open_dataset(f"coco:{coco}", count) if tasks is None else tasks[0].data
    if tasks is None:
        tasks = [
            ChairTask(data, ChairSettings(prompt=prompt, max_new_tokens=64)),
            PopeTask(data, PopeSettings(strategies=["random", "adversarial"])),
        ]
    described = {task.name: task.describe() for task in tasks}
    results, read = [], []
    for label, answer in methods.items():
        records = []
        for task in tasks:
            records += [
                _record(task, sample, answer, data, label, (skipped or {}).get(label, ())) for sample in task.samples()
            ]
        write_records(folder / label / "samples.jsonl", records)
        own = MethodRecords(records)
        read.append(own)
        results.append(
            MethodResult(
                label=label,
                directory=label,
                methods=[{"method": label, "options": {}}],
                samples=own.sample_counts(),
                **own.summaries(described),
                estimates=own.estimates(200),
                difference_to_baseline=own.differences_to(read[0], 200) if len(read) > 1 else {},
                cost=own.cost(),
                task_costs={},
                sessions=[],
            )
        )
    fields = {
        "created": "2026-01-01T00:00:00+00:00",
        "data": {**data.describe(), "selection": data.selection, "images_without_file": 0},
        "image_ids": list(data.images),
        "tasks": described,
        "template": {"source": "chat template", "sha256": "0" * 64},
        "decoding": {"do_sample": False, "num_beams": 1, "batch_size": 4, "seed": 0, "checkpoint": {}},
        "model": {"name": "made-up", "dtype": "float32", "device": "cpu"},
        "profile": None,
        "statistics": {"level": 0.95, "resamples": 200},
        "environment": {"versions": {"torch": "1"}, "hardware": {"cores": 1}, "git": None},
        "baseline": results[0].label,
        "methods": results,
    }
    finished = RunResults(**{**fields, **changes})
    finished.save(folder)
    return finished


def _record(task, sample, answer: Answerer, data: EvaluationData, label: str, skipped: tuple[int, ...]) -> dict:
    image = data.images[sample.image_id].relative_to(data.folder).as_posix()
    known = {"sample": sample.key, "task": sample.task, "image_id": sample.image_id, "image": image}
    if sample.image_id in skipped:
        return {**known, "error": f"cannot read {image}"}
    text = answer(sample.task, sample.image_id, sample.prompt)
    return {
        **known,
        "prompt": sample.prompt,
        "text": text,
        "tokens": len(text.split()),
        "finished": True,
        "score": task.score(sample, text),
        "batch": 0,
        "turn": 0,
        "seconds": 0.5,
        "memory_bytes": 2**30,
        "memory_kind": "resident set",
    }


def careful(task: str, image_id: int, prompt: str) -> str:
    """Names the first object of the image and nothing else; says yes to everything."""
    from small_coco import CATEGORIES

    return f"A {CATEGORIES[image_id % len(CATEGORIES)]}." if task == "chair" else "Yes"


def careless(task: str, image_id: int, prompt: str) -> str:
    """Adds an object that is not there; mumbles at every question about a dog."""
    from small_coco import CATEGORIES

    if task == "chair":
        absent = CATEGORIES[(image_id + 4) % len(CATEGORIES)]
        return f"{careful(task, image_id, prompt)} Also a {absent} </script><b>."
    return "Hmm" if "dog" in prompt else "No"
