"""From records to numbers: the summary of a method is computed from its per-sample records and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlm_guard.eval.run.metrics import (
    CHAIR_METRICS,
    Metric,
    chair_counts,
    pope_count_names,
    pope_counts,
    pope_metrics,
)
from vlm_guard.eval.run.records import Record
from vlm_guard.eval.run.results import Cost, Difference, Estimate, SampleCounts
from vlm_guard.eval.run.statistics import ImageCounts, differences, intervals, verdict
from vlm_guard.eval.tasks.base import STRATEGIES, summarise_chair, summarise_pope

CHAIR_COUNTS = (
    "captions",
    "hallucinated_captions",
    "mentions",
    "hallucinated_mentions",
    "mentioned_objects",
    "recalled_objects",
    "objects",
    "words",
    "tokens",
    "repetition",
)
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
    def strategies(self) -> list[str]:
        """POPE's strategies in these records, in their usual order."""
        found = {name for record in self.answered.get("pope", []) for name in record["score"]["strategies"]}
        known = [name for name in STRATEGIES if name in found]
        return known + sorted(found - set(known))

    def metrics(self) -> dict[str, tuple[Metric, ...]]:
        """The metrics of every task that has records."""
        found: dict[str, tuple[Metric, ...]] = {}
        if "chair" in self.answered:
            found["chair"] = CHAIR_METRICS
        if "pope" in self.answered:
            found["pope"] = pope_metrics(self.strategies)
        return found

    def image_counts(self, task: str) -> ImageCounts:
        """Counts per image of one task."""
        records = self.answered.get(task, [])
        if task == "chair":
            return ImageCounts(CHAIR_COUNTS, ((record["image_id"], chair_counts(record)) for record in records))
        names = pope_count_names(self.strategies)
        return ImageCounts(names, ((record["image_id"], pope_counts(record)) for record in records))

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
        )

    def summaries(self, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The tasks' own summaries with integer counts, under `chair` and `pope`."""
        found: dict[str, Any] = {}
        if "chair" in self.answered:
            found["chair"] = summarise_chair(self.answered["chair"], settings["chair"]["text_mode"])
        if "pope" in self.answered:
            found["pope"] = summarise_pope(self.answered["pope"], settings["pope"]["parser"])
        return found

    def estimates(self, resamples: int) -> dict[str, Estimate]:
        """Every metric of every task with its interval."""
        found = {}
        for task, metrics in self.metrics().items():
            values = intervals(self.image_counts(task), metrics, resamples, BOOTSTRAP_SEED)
            found |= {name: Estimate(**asdict(interval)) for name, interval in values.items()}
        return found

    def differences_to(self, baseline: "MethodRecords", resamples: int) -> dict[str, Difference]:
        """Every metric's paired difference to a baseline, on the images both answered."""
        found = {}
        for task, metrics in self.metrics().items():
            if task not in baseline.answered:
                continue
            if task == "pope":  # a strategy whose pictures one of them could not read has no difference
                metrics = pope_metrics([name for name in self.strategies if name in baseline.strategies])
            pairs = differences(
                baseline.image_counts(task), self.image_counts(task), metrics, resamples, BOOTSTRAP_SEED
            )
            by_name = {metric.name: metric for metric in metrics}
            for name, interval in pairs.items():
                found[name] = Difference(**asdict(interval), verdict=verdict(interval, by_name[name]))
        return found
