"""Comparing methods of one or several runs, on the same images or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_guard.eval.report.joining import JoinedRun, join_parts, meaning_of, missing_parts
from vlm_guard.eval.report.run_differences import difference_notes
from vlm_guard.eval.report.tables import DECODING_DIFFERS, decoding_text
from vlm_guard.eval.run.received import check_samples
from vlm_guard.eval.run.records import Record, read_records
from vlm_guard.eval.run.results import SAMPLES_FILE, MethodResult, RunResults, read_results, run_folder
from vlm_guard.eval.run.resume import differing_fields
from vlm_guard.eval.run.summary import MethodRecords
from vlm_guard.untrusted import json_files
from vlm_guard.untrusted.paths import Inside

# Settings that do not change what a number means, but may move it a little or change what it cost.
_NOTED = (
    *("model", "protocol", "decoding.batch_size", "decoding.seed", "profile"),
    *("environment.versions", "environment.hardware"),
)

# How tokens are chosen; see `decoding_differs`.
_WAYS = ("do_sample", "temperature", "top_p", "num_beams")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods of one or several runs beside each other.

    Attributes:
        results: as the results of a single run: the first run's settings, all methods, differences to one baseline.
        records: the records of every method by its label.
        folders: the run's folder of every method by its label.
        notes: what differs between the runs without making them incomparable, in words.
    """

    results: RunResults
    records: dict[str, list[Record]]
    folders: dict[str, Path]
    notes: tuple[str, ...]


def compare_runs(
    folders: Sequence[Path],
    baseline: str | None = None,
    resamples: int | None = None,
    change: Callable[[str, list[Record]], list[Record]] | None = None,
    decoding_differs: bool = False,
) -> Comparison:
    """Bring runs together; all numbers are computed anew from their records.

    Args:
        folders: folders that `vlm-guard eval` wrote, or files of answers that `caption` or `ask` wrote. Two that asked
            parts of one benchmark (AMBER's descriptions, its yes/no questions) count as one run.
        baseline: label of the method the others are compared with; the first run's first method by default.
        resamples: number of bootstrap resamples; the first run's by default.
        change: makes other records of a method's (by its label), such as ones with a judge's verdicts.
        decoding_differs: take runs that sampled, searched with beams or were greedy together; a note says which did.

    Raises:
        FileNotFoundError: a folder holds no finished run.
        ValueError: the runs differ in something that changes what the numbers mean (metric variant, prompt, images,
            decoding, ...); the message names the field. Or there is no such baseline.
    """
    if not folders:
        raise ValueError("give at least one folder that 'vlm-guard eval' has written")
    folders = [run_folder(folder) for folder in folders]
    _require_runs(folders)
    joined = join_parts(folders, [read_results(folder) for folder in folders])
    runs = [item.results for item in joined]
    notes = [note for run in runs for note in run.notes]
    for item in joined[1:]:
        notes += check_comparable(runs[0], item.results, joined[0].folder, item.folder, decoding_differs)
    notes += [sentence for run in runs for sentence in missing_parts(list(run.tasks))]
    entries = _label(joined)
    records = {label: _records(item, method.label) for label, item, method in entries}
    if change is not None:
        records = {label: change(label, items) for label, items in records.items()}
    read = {label: MethodRecords(items) for label, items in records.items()}
    chosen = baseline if baseline is not None else entries[0][0]
    if chosen not in read:
        raise ValueError(f"there is no method {chosen!r} to compare with; there are {', '.join(read)}")
    draws = resamples if resamples is not None else runs[0].statistics["resamples"]
    methods = []
    for label, item, method in sorted(entries, key=lambda entry: entry[0] != chosen):
        own = read[label]
        fair, said = own.fair_differences(read[chosen], draws) if label != chosen else ({}, {})
        computed = {
            "label": label,
            **own.summaries(item.results.tasks),
            "samples": own.sample_counts(),
            # Files of versions that wrote no plan were complete when they were written.
            "planned": method.planned or {task: counts.asked for task, counts in method.samples.items()},
            "estimates": own.estimates(draws) | fair,
            "fair": said,
            "difference_to_baseline": own.differences_to(read[chosen], draws) if label != chosen else {},
            "unchanged": own.unchanged(read[chosen]) if label != chosen else {},
            "cost": own.cost(),
            "task_costs": {task: own.cost(task) for task in own.answered},
        }
        methods.append(method.model_copy(update=computed))
    notes += _uneven(methods, read)
    results = runs[0].model_copy(
        update={
            "baseline": chosen,
            "methods": methods,
            "statistics": {**runs[0].statistics, "resamples": draws},
        }
    )
    # What the runs said about missing records is said anew: some may have been asked since, or lost.
    notes = [*results.shortfalls(), *(note for note in notes if not note.startswith("incomplete: "))]
    results = results.model_copy(update={"notes": list(dict.fromkeys(notes))})
    return Comparison(
        results=results,
        records=records,
        folders={label: item.folder for label, item, _ in entries},
        notes=tuple(results.notes),
    )


def _require_runs(folders: Sequence[Path]) -> None:
    """Refuse files of answers that no run has written; the message says by what they are scored."""
    for folder in folders:
        if not folder.is_file() or folder.suffix == ".json":
            continue
        _, record = next(json_files.read_records(folder), (0, {}))
        names = " ".join(str(path) for path in folders)
        if "caption" in record:
            advice = f"these are captions: score them with vlm-guard chair {names} --objects ... or --coco FOLDER"
        else:
            advice = "captions are scored by vlm-guard chair, answers to yes/no questions by vlm-guard pope"
        raise ValueError(f"{folder} is a file of answers and no folder of a run; {advice}")


def _label(runs: Sequence[JoinedRun]) -> list[tuple[str, JoinedRun, MethodResult]]:
    """Every method with a label of its own: its run's folder goes in front where two would share one."""
    found = [(run, method) for run in runs for method in run.results.methods]
    labels = [method.label for _, method in found]
    entries = []
    for run, method in found:
        label = method.label if labels.count(method.label) == 1 else f"{run.folder.resolve().name}/{method.label}"
        entries.append((label, run, method))
    taken = [entry[0] for entry in entries]
    if len(set(taken)) < len(taken):
        raise ValueError("the same run, or two runs in folders of the same name, are given; rename one folder")
    return entries


def _records(joined: JoinedRun, label: str) -> list[Record]:
    """The records of a method in all parts of a run."""
    found: list[Record] = []
    for folder, run in joined.parts:
        directory = run.method(label).directory
        path = folder / directory / SAMPLES_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} lacks {directory}/{SAMPLES_FILE}, which its results come from")
        records = list(read_records(Inside(folder).check(path))[0].values())
        check_samples(records, run.tasks, path)
        found += records
    return found


def check_comparable(
    first: RunResults, second: RunResults, first_folder: Path, second_folder: Path, decoding_differs: bool = False
) -> list[str]:
    """What differs between two comparable runs, in words; with `decoding_differs` how tokens were chosen, too.

    Raises:
        ValueError: they are not comparable; the message names the field and both values.
    """
    shared = [task for task in first.tasks if task in second.tasks]
    if not shared:
        raise ValueError(f"{first_folder} and {second_folder} have no task in common")
    left, right = meaning_of(first), meaning_of(second)
    for side, run in ((left, first), (right, second)):
        side["tasks"] = {task: run.tasks[task] for task in shared}
    # What a server puts prompts into is not known, nor what its checkpoint brings along.
    served = ("endpoint" in first.model) != ("endpoint" in second.model)
    same_model = first.model["name"] == second.model["name"] and not served
    if same_model:
        left["template"], right["template"] = first.template, second.template
    else:
        # Which settings a checkpoint brings along is part of the model, like its template.
        left["decoding"].pop("checkpoint", None)
        right["decoding"].pop("checkpoint", None)
    notes = []
    ways = [{name: side["decoding"].get(name) for name in _WAYS} for side in (left, right)]
    if decoding_differs and ways[0] != ways[1]:
        left["decoding"], right["decoding"] = ({**side["decoding"], **ways[0]} for side in (left, right))
        texts = [decoding_text(run.decoding) for run in (first, second)]
        notes.append(f"{DECODING_DIFFERS}: {texts[0]} in {first_folder.name}, {texts[1]} in {second_folder.name}")
    differing = differing_fields(left, right)
    if differing:
        name, before, after = differing[0]
        hint = ""
        if all(item[0] in {f"decoding.{way}" for way in _WAYS} for item in differing):
            hint = "; --decoding-differs puts these beside each other nevertheless, and says so"
        others = ", ".join(item[0] for item in differing[1:4])
        more = f" (also: {others})" if others else ""
        raise ValueError(
            f"{first_folder} and {second_folder} cannot be compared: {name} is {before!r} in one and {after!r} in the "
            f"other{more}. Numbers of different variants, images or prompts must not stand in one table"
            f"{hint}"
        )
    dumped = first.model_dump(mode="json"), second.model_dump(mode="json")
    notes += difference_notes(*dumped, (first_folder.name, second_folder.name), _NOTED)
    missing = set(first.tasks) ^ set(second.tasks)
    if missing:
        notes.append(f"only one of {first_folder.name} and {second_folder.name} has {', '.join(sorted(missing))}")
    return notes


def _uneven(methods: Sequence[MethodResult], read: dict[str, MethodRecords]) -> list[str]:
    """Say where methods have skipped different images, so that values rest on slightly different sets."""
    skipped = {label: {record["image_id"] for record in records.skipped} for label, records in read.items()}
    if len(set(map(frozenset, skipped.values()))) > 1:
        counts = ", ".join(f"{method.label} {len(skipped[method.label])}" for method in methods)
        return [f"the methods skipped different images ({counts}); differences use the images both answered"]
    return []
