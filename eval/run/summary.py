"""From records to numbers: the summary of a method is computed from its per-sample records and nothing else."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlm_guard.eval.run.records import Record
from vlm_guard.eval.run.results import Cost, Difference, Estimate, SampleCounts
from vlm_guard.eval.run.statistics import ImageCounts, differences, intervals, verdict
from vlm_guard.eval.tasks.shared.metric import Metric
from vlm_guard.eval.tasks.shared.registry import listing_order, task_class

# Every interval of a run is computed with this seed, so that two readings of the same records agree to the digit.
BOOTSTRAP_SEED = 20240229


class MethodRecords:
    """The records of one method, by task.

    Args:
        records: all records of the method, skipped samples included.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.answered: dict[str, list[Record]] = {}
        self.skipped: list[Record] = []
        self.asked: dict[str, int] = {}
        for record in records:
            task = record["task"]
            self.asked[task] = self.asked.get(task, 0) + 1
            if "error" in record:
                self.skipped.append(record)
            else:
                self.answered.setdefault(task, []).append(record)

    @property
    def tasks(self) -> list[str]:
        """The tasks that have answers, in the order tasks are listed in, whichever was asked first."""
        return sorted(self.answered, key=listing_order)

    def metrics(self) -> dict[str, tuple[Metric, ...]]:
        """The metrics of every task that has answers."""
        return {task: task_class(task).metrics(self.answered[task]) for task in self.tasks}

    def image_counts(self, task: str) -> ImageCounts:
        """Counts per image of one task."""
        by_image: dict[int, list[Record]] = {}
        for record in self.answered.get(task, []):
            by_image.setdefault(record["image_id"], []).append(record)
        counts = {image_id: task_class(task).image_counts(records) for image_id, records in by_image.items()}
        names = dict.fromkeys(name for image in counts.values() for name in image)
        return ImageCounts(list(names), counts.items())

    def joined(self) -> dict[str, tuple[tuple[Metric, ...], ImageCounts]]:
        """By task, the metrics that need another task's answers too (`Task.joined_with`), with the counts of both."""
        found = {}
        for task in self.tasks:
            metrics, other = task_class(task).joined_metrics(), task_class(task).joined_with
            if metrics and other in self.answered:
                parts = {name: self.image_counts(name) for name in (task, other)}
                names = [f"{name}/{count}" for name, part in parts.items() for count in part.names]
                entries = [
                    (image_id, {f"{name}/{count}": value for count, value in zip(part.names, row)})
                    for name, part in parts.items()
                    for image_id, row in zip(part.images, part.table)
                ]
                found[task] = metrics, ImageCounts(names, entries)
        return found

    def sample_counts(self) -> dict[str, SampleCounts]:
        """How many samples of every task were asked, answered, skipped and cut off."""
        return {
            task: SampleCounts(
                asked=asked,
                answered=len(self.answered.get(task, [])),
                skipped=sum(record["task"] == task for record in self.skipped),
                cut_off=sum(not record["finished"] for record in self.answered.get(task, [])),
            )
            for task, asked in self.asked.items()
        }

    def cost(self, task: str | None = None) -> Cost:
        """Time, tokens and memory of one task's answers, or of all."""
        records = [record for name, items in self.answered.items() if task in (None, name) for record in items]
        seconds = sum(record["seconds"] for record in records)
        tokens = sum(record["tokens"] for record in records)
        kinds = sorted({record["memory_kind"] for record in records})
        return Cost(
            seconds=seconds,
            tokens=tokens,
            tokens_per_second=tokens / seconds if seconds else 0.0,
            peak_memory_bytes=max((record["memory_bytes"] for record in records), default=0),
            memory_kind=", ".join(kinds),
            timed=", ".join(sorted({record.get("timed", "generate") for record in records})) or "generate",
        )

    def summaries(self, described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The tasks' own summaries, by task; `described` is what the tasks' `describe` gave."""
        return {task: task_class(task).summarise(self.answered[task], described[task]) for task in self.tasks}

    def estimates(self, resamples: int) -> dict[str, Estimate]:
        """Every metric of every task with its interval."""
        found: dict[str, Estimate] = {}
        for task, metrics in self.metrics().items():
            counts = self.image_counts(task)
            values = intervals(counts, metrics, resamples, BOOTSTRAP_SEED)
            empty = counts.without_value(metrics)
            found |= {
                name: Estimate(**asdict(interval), **_undefined(name, empty)) for name, interval in values.items()
            }
        for metrics, counts in self.joined().values():
            values = intervals(counts, metrics, resamples, BOOTSTRAP_SEED)
            found |= {name: Estimate(**asdict(interval)) for name, interval in values.items()}
        return found

    def unchanged(self, baseline: "MethodRecords") -> dict[str, int]:
        """How many samples both answered, and how many answers of them are the same text; empty without any."""
        known = {item["sample"]: item["text"] for items in baseline.answered.values() for item in items}
        both = [item for items in self.answered.values() for item in items if item["sample"] in known]
        same = sum(item["text"] == known[item["sample"]] for item in both)
        return {"answers": len(both), "same": same} if both else {}

    def fair_differences(self, baseline: "MethodRecords", resamples: int) -> tuple[dict[str, Estimate], dict[str, Any]]:
        """What is left of differences to a baseline when an easy explanation is taken away (`Task.fair_pair`).

        Returns:
            The differences as estimates by their own names, and by task what was compared.
        """
        found: dict[str, Estimate] = {}
        said: dict[str, Any] = {}
        for task in self.tasks:
            cls = task_class(task)
            pair = cls.fair_pair(baseline.answered.get(task, []), self.answered[task])
            if pair is None:
                continue
            known = {metric.name for metric in cls.metrics(pair.baseline)}
            metrics = [item for item in cls.metrics(pair.other) if item.name in pair.metrics and item.name in known]
            first, second = (MethodRecords(records).image_counts(task) for records in (pair.baseline, pair.other))
            values = differences(first, second, metrics, resamples, BOOTSTRAP_SEED)
            empty = first.without_value(metrics) | second.without_value(metrics)
            found |= {
                pair.metrics[name]: Estimate(**asdict(interval), **_undefined(name, empty))
                for name, interval in values.items()
            }
            said[task] = {"what": pair.what, **pair.facts}
        return found, said

    def differences_to(self, baseline: "MethodRecords", resamples: int) -> dict[str, Difference]:
        """Every metric's paired difference to a baseline, on the images both answered."""
        compared = [
            (
                task_class(task).comparable_metrics(baseline.answered[task], self.answered[task]),
                baseline.image_counts(task),
                self.image_counts(task),
            )
            for task in self.tasks
            if task in baseline.answered
        ]
        first, second = baseline.joined(), self.joined()
        compared += [(second[task][0], first[task][1], second[task][1]) for task in second if task in first]
        found = {}
        for metrics, before, after in compared:
            pairs = differences(before, after, metrics, resamples, BOOTSTRAP_SEED)
            by_name = {metric.name: metric for metric in metrics}
            empty = before.without_value(metrics) | after.without_value(metrics)
            for name, interval in pairs.items():
                said = "unclear" if name in empty else verdict(interval, by_name[name])
                found[name] = Difference(**asdict(interval), verdict=said, **_undefined(name, empty))
        return found


def _undefined(name: str, empty: Collection[str]) -> dict[str, Any]:
    """What marks an estimate that says nothing."""
    return {"undefined": True} if name in empty else {}
