"""What a reader has to know before the numbers of a table are believed, said below it."""

from vlm_guard.eval.run.results import FEWEST_FOR_INTERVALS, RunResults
from vlm_guard.eval.run.statistics import FEW_PICTURES
from vlm_guard.eval.tasks.shared.registry import task_class, task_names


def reading_notes(results: RunResults) -> list[str]:
    """A sentence for everything about these numbers that they do not show themselves; without a full stop."""
    known = [name for name in results.tasks if name in task_names()]
    return [
        *_few_pictures(results),
        *_without_effect(results),
        *(note for name in known for note in _notes_of(results, name)),
    ]


def _few_pictures(results: RunResults) -> list[str]:
    images = max((item.images for method in results.methods for item in method.estimates.values()), default=0)
    return [few_pictures(images)] if 0 < images < FEW_PICTURES else []


def few_pictures(images: int) -> str:
    """What is said where intervals rest on fewer pictures than `FEW_PICTURES`."""
    what = "1 picture" if images == 1 else f"{images} pictures"
    numbers = "intervals" if images >= FEWEST_FOR_INTERVALS else "numbers"
    return f"{numbers} of so few pictures ({what}) say little: ask {FEW_PICTURES} or more"


def _without_effect(results: RunResults) -> list[str]:
    """The methods whose answers are the baseline's, every one, with the reason where results show it."""
    notes = []
    for method in results.methods:
        count = method.unchanged.get("answers", 0)
        if not count or method.unchanged.get("same") != count:
            continue
        acting = [item["method"] for item in method.methods if item["method"] != "none"]
        baseline = "the plain model's" if results.baseline == "none" else f"those of {results.baseline}"
        plain = method.label.rpartition("/")[2] == "none"  # in front of it stands the run, where there are several
        reason = "" if acting or plain else ": on this model it comes to no method at all"
        notes.append(f"{method.label}: all {count} answers equal {baseline}{reason}")
    return notes


def _notes_of(results: RunResults, task: str) -> list[str]:
    cls = task_class(task)
    summaries = {method.label: method.summary(task) for method in results.methods}
    columns = {column.metric for column in cls.columns}
    asked = [item.images for method in results.methods for name, item in method.estimates.items() if name in columns]
    found = {label: summary for label, summary in summaries.items() if summary is not None}
    # Unreadable pictures, and those of a run that is not at its end, are missing for another reason than the task's.
    pictures = results.data["images"] - min((len(method.skipped_images) for method in results.methods), default=0)
    whole = all(method.complete for method in results.methods)
    return cls.notes(results.tasks[task], found, max(asked, default=0) if whole else pictures, pictures)
