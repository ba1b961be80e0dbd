"""The end of a run: from the records of its methods to `results.json`, and what a reader has to know about them."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_guard.eval.run.earlier import EarlierMethod
from vlm_guard.eval.run.environment import git_state
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.run.results import MethodResult, RunResults
from vlm_guard.eval.run.setup import Evaluation
from vlm_guard.eval.run.statistics import LEVEL
from vlm_guard.eval.run.summary import BOOTSTRAP_SEED, MethodRecords
from vlm_guard.eval.scenes.recognise import note_about_files


@dataclass(kw_only=True)
class AnsweredMethod:
    """One method's answers, from this run or an earlier one in the same folder.

    Attributes:
        label: what tables call it.
        directory: its folder's name.
        described: every method of the combination with all option values.
        records: its records, skipped samples included.
        sessions: when they were worked on.
        earlier: whether an earlier run asked it and this one did not.
        damaged: a sentence for every damaged line that was taken out.
    """

    label: str
    directory: str
    described: list[dict[str, Any]]
    records: list[Record]
    sessions: list[dict[str, Any]]
    earlier: bool = False
    damaged: list[str] = field(default_factory=list)


def with_earlier(answered: Sequence[AnsweredMethod], earlier: Sequence[EarlierMethod]) -> list[AnsweredMethod]:
    """All methods of the folder. An earlier run's baseline stays first unless it is asked again."""
    kept = [
        AnsweredMethod(
            label=method.label,
            directory=method.directory,
            described=method.fingerprint["methods"],
            records=list(method.records.values()),
            sessions=method.sessions,
            earlier=True,
            damaged=method.damaged,
        )
        for method in earlier
    ]
    return [*kept, *answered] if any(method.baseline for method in earlier) else [*answered, *kept]


def summarise_run(run: Evaluation, methods: Sequence[AnsweredMethod]) -> RunResults:
    """The results of a run, computed from its records; the first method is the baseline."""
    tasks = {name: task.describe() for name, task in run.tasks.items()}
    plan = run.plan()
    read = [MethodRecords(method.records) for method in methods]
    resamples = run.settings.resamples
    decided = run.engine.fingerprint(0)
    surroundings = run.engine.surroundings()
    fair = [({}, {}) if not place else item.fair_differences(read[0], resamples) for place, item in enumerate(read)]
    results = [
        MethodResult(
            label=method.label,
            directory=method.directory,
            methods=method.described,
            samples=records.sample_counts(),
            planned=plan,
            **records.summaries(tasks),
            estimates=records.estimates(resamples) | fair[index][0],
            fair=fair[index][1],
            difference_to_baseline=records.differences_to(read[0], resamples) if index else {},
            unchanged=records.unchanged(read[0]) if index else {},
            cost=records.cost(),
            task_costs={task: records.cost(task) for task in records.answered},
            sessions=[_without_folder(session) for session in method.sessions],
            skipped_images=[
                {"image_id": record["image_id"], "image": record["image"], "error": record["error"]}
                for record in {record["image_id"]: record for record in records.skipped}.values()
            ],
        )
        for index, (method, records) in enumerate(zip(methods, read))
    ]
    finished = RunResults(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data={
            **run.data.describe(),
            "selection": run.data.selection,
            "images_without_file": run.data.images_without_file,
        },
        image_ids=list(run.data.images),
        tasks=tasks,
        template=decided["template"],
        decoding=decided["decoding"],
        protocol=run.protocol(),
        model=run.engine.model(),
        profile=decided["profile"],
        statistics={
            "interval": "percentile bootstrap over images, paired for differences",
            "level": LEVEL,
            "resamples": resamples,
            "seed": BOOTSTRAP_SEED,
        },
        environment={
            "versions": surroundings["versions"],
            "hardware": surroundings["hardware"],
            "git": git_state(),
        },
        baseline=methods[0].label,
        methods=results,
    )
    notes = [*finished.shortfalls(), *_damages(methods), *_mixed_sources(methods), *_mixed_runs(methods)]
    notes += [*_mixed_endpoints(methods), *_mixed_files(methods)]
    if run.data.kind != "scenes" and run.settings.endpoint is None:
        notes += filter(None, [note_about_files(run.settings.model, run.data.images.values())])
    return finished.model_copy(update={"notes": notes})


def _without_folder(session: dict[str, Any]) -> dict[str, Any]:
    # Results are passed on and committed: they name no folder of the machine, and nothing to know it by.
    return {name: value for name, value in session.items() if name not in ("image_folder", "picture_marks")}


def _damages(methods: Sequence[AnsweredMethod]) -> list[str]:
    """How many damaged lines were taken out; results name no folder of the machine, so the lines are not named here."""
    return [
        f"{len(method.damaged)} damaged lines were found in the records of {method.label} and taken out"
        for method in methods
        if method.damaged
    ]


def _mixed_runs(methods: Sequence[AnsweredMethod]) -> list[str]:
    """A note when some methods were asked by an earlier run, so that their times were not taken side by side."""
    earlier = [method.label for method in methods if method.earlier]
    if not earlier:
        return []
    return [
        f"{', '.join(earlier)}: kept from an earlier run in this folder, so times and memory were not measured in turn "
        "with those of the other methods"
    ]


def _mixed_sources(methods: Sequence[AnsweredMethod]) -> list[str]:
    """A note when the sessions of a run used different states of the source tree."""
    sessions = [session for method in methods for session in method.sessions]
    states = {(item["git"]["commit"], item["git"]["changed_files"] > 0) for item in sessions if item["git"]}
    if len(states) < 2:
        return []
    return [f"the records were made with {len(states)} different states of the source tree (sessions list them)"]


def _mixed_endpoints(methods: Sequence[AnsweredMethod]) -> list[str]:
    """A note when servers at several addresses answered: that they serve the same model is only what they say."""
    found = {session["endpoint"]: None for method in methods for session in method.sessions if "endpoint" in session}
    if len(found) < 2:
        return []
    return [f"the records were made by servers at {len(found)} addresses: {', '.join(found)}"]


def _mixed_files(methods: Sequence[AnsweredMethod]) -> list[str]:
    """A note for every file of a method that was changed between the methods of one table."""
    states: dict[str, dict[str, list[str]]] = {}
    for method in methods:
        for file in [item["file"] for item in method.described if "file" in item]:
            states.setdefault(file["file"], {}).setdefault(file["sha256"], []).append(method.label)
    return [
        f"{name} was changed between {' and '.join(', '.join(labels) for labels in by_state.values())}"
        for name, by_state in states.items()
        if len(by_state) > 1
    ]
