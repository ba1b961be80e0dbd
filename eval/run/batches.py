"""The batches of a run: which samples are asked together, in which order, by which process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm_guard.eval.tasks.base import Sample, Task


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

    def seed(self, run_seed: int) -> int:
        """The seed of this batch's random draws, from that of the run: the same whoever answers it, and when."""
        return (run_seed * 1_000_003 + self.index) % 2**63


def cut_batches(tasks: Mapping[str, Task], size: int) -> list[Batch]:
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


def share(batches: Sequence[Batch], rank: int, size: int) -> list[Batch]:
    """The batches of one process: of every task each `size`-th, because captions take much longer than yes or no."""
    seen: dict[str, int] = {}
    mine = []
    for batch in batches:
        place = seen[batch.task.name] = seen.get(batch.task.name, -1) + 1
        if place % size == rank:
            mine.append(batch)
    return mine
