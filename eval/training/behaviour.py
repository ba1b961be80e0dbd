"""``python -m vlm_guard.eval.training.behaviour OUT``: choose the checkpoint by what it does, then measure it.

Snapshots are compared on scenes of a seed of their own; the chosen one is exported and measured on two more seeds,
which is written to ``behaviour.json`` beside the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vlm_guard.eval.training.targets import Target

CHOICE_SEED = 501
EVALUATION_SEEDS = (701, 702)
SMALL = 200
PARTS = ("common", "broken", "held-out", "crowded", "details")


def average(measures: list[Any]) -> Any:
    """Mean of numbers that stand at the same place of several measurements; other values are those of the first."""
    first = measures[0]
    if isinstance(first, dict):
        return {key: average([measure[key] for measure in measures if key in measure]) for key in first}
    if isinstance(first, list):
        return [average(list(values)) for values in zip(*measures)]
    if isinstance(first, int | float) and not isinstance(first, bool):
        return round(sum(measures) / len(measures), 2)
    return first


def _snapshot_basics(folder: Path, snapshot: Path, split: str, count: int) -> dict[str, Any]:
    """Captions and POPE of one snapshot on the choice seed."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from vlm_guard.eval.training.behaviour_measures import Trial
    from vlm_guard.eval.training.checkpoints import load_weights
    from vlm_guard.eval.training.model import new_model

    torch.set_num_threads(1)
    model = new_model(0).eval()
    load_weights(snapshot, model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    return Trial(model, tokenizer, split, CHOICE_SEED, count).basics()


def choose(folder: Path, count: int, pool: Executor) -> tuple[Path, list[dict[str, Any]]]:
    """Measure every snapshot on the choice seed; the one nearest to the targets, the later one among equals.

    Raises:
        FileNotFoundError: there are no snapshots.
    """
    from vlm_guard.eval.training.checkpoints import read_progress
    from vlm_guard.eval.training.targets import total_shortfall

    snapshots = sorted((folder / "snapshots").glob("*.safetensors"), key=_age)
    if not snapshots:
        raise FileNotFoundError(f"No snapshots in {folder / 'snapshots'}; train first.")
    waiting = [
        {split: pool.submit(_snapshot_basics, folder, path, split, count) for split in ("common", "broken")}
        for path in snapshots
    ]
    results = []
    for path, parts in zip(snapshots, waiting):
        measured = {split: part.result() for split, part in parts.items()}
        shortfall = total_shortfall(measured)
        print(f"{path.name}: shortfall {shortfall}", flush=True)
        results.append({"snapshot": path.name, **read_progress(path), "shortfall": shortfall, **measured})
    best = min(reversed(results), key=lambda result: result["shortfall"])
    return folder / "snapshots" / best["snapshot"], results


def _age(snapshot: Path) -> tuple[int, float]:
    """Sorts snapshots by the time they were made."""
    from vlm_guard.eval.training.checkpoints import read_progress
    from vlm_guard.eval.training.loop import STAGES

    progress = read_progress(snapshot)
    return STAGES.index(progress["stage"]), progress["elapsed"]


def _measure_part(folder: Path, part: str, seed: int, count: int, dtype: str) -> dict[str, Any]:
    """One split's captions and POPE, or (``details``) everything else, of an exported model."""
    import torch
    from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

    from vlm_guard.eval.training import behaviour_measures as measures

    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if part != "details":
        return {part: measures.Trial(model, tokenizer, part, seed, count).basics()}
    trial = measures.Trial(model, tokenizer, "common", seed + 1000, min(SMALL, count))
    return {
        "wording": measures.wordings(trial),
        "unknown": measures.unknown_things(trial),
        "counting": measures.counting(trial),
        "positions": measures.positions(trial),
        "leading": measures.leading(trial),
    }


def measure(
    folder: Path,
    count: int,
    pool: Executor,
    seeds: tuple[int, ...] = EVALUATION_SEEDS,
    *,
    targets: Sequence[Target] | None = None,
    dtype: str = "float32",
    parts: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """The full measurement of an exported model, averaged over ``seeds``.

    Args:
        folder: Folder that ``from_pretrained`` can load.
        count: Scenes per split and seed; wordings, counts, positions and leading questions use 200 at most.
        pool: Where the parts are measured.
        seeds: Evaluation seeds.
        targets: What is wanted; the built-in model's by default.
        dtype: Type of the weights in memory.
        parts: What to measure, out of `PARTS`.
    """
    from vlm_guard.eval.training.targets import FULL_TARGETS, total_shortfall, verdicts

    wanted = FULL_TARGETS if targets is None else tuple(targets)
    waiting = {seed: [pool.submit(_measure_part, folder, part, seed, count, dtype) for part in parts] for seed in seeds}
    runs = []
    for seed, tasks in waiting.items():
        run: dict[str, Any] = {}
        for task in tasks:
            run |= task.result()
        for split in [part for part in parts if part != "details"]:
            print(f"seed {seed}, {split}: {json.dumps(run[split]['detailed'])}", flush=True)
        runs.append(run)
    mean = average(runs)
    return {
        "decoding": f"greedy, {dtype}",
        "seeds": list(seeds),
        "scenes_per_split_and_seed": count,
        "scenes_per_seed_for_wording_unknown_counting_positions_leading": min(SMALL, count),
        "targets": verdicts(mean, wanted),
        "shortfall": total_shortfall(mean, wanted),
        "mean": mean,
        "runs": dict(zip(map(str, seeds), runs)),
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Training folder, or with --model-only a folder with a model.")],
    count: Annotated[int, typer.Option(help="Scenes per split and seed.")] = 500,
    choice_count: Annotated[int, typer.Option(help="Scenes per split for comparing snapshots.")] = 300,
    workers: Annotated[int, typer.Option(help="Processes, of one CPU thread each.", min=1)] = 2,
    model_only: Annotated[bool, typer.Option(help="Measure the model in FOLDER; choose nothing.")] = False,
) -> None:
    """Choose a snapshot by behaviour, export it, and write behaviour.json beside it."""
    from multiprocessing import get_context

    from vlm_guard.eval.training.loop import CHILD_ENVIRONMENT
    from vlm_guard.eval.training.run import export
    from vlm_guard.whole_files import write_atomically

    os.environ.update(CHILD_ENVIRONMENT)
    target = folder
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        if not model_only:
            snapshot, results = choose(folder, choice_count, pool)
            target = export(folder, snapshot)
            selection = {"chosen": snapshot.name, "snapshots": results}
            write_atomically(target / "selection.json", json.dumps(selection) + "\n")
            for name in ("recipe.json", "log.jsonl"):
                write_atomically(target / f"training_{name}", (folder / name).read_text(encoding="utf-8"))
        report = measure(target, count, pool)
    write_atomically(target / "behaviour.json", json.dumps(report, indent=1) + "\n")
    print_verdicts(report)


def print_verdicts(report: dict[str, Any]) -> None:
    """One line for each target of a measurement."""
    for verdict in report["targets"]:
        mark = "met " if verdict["met"] else "MISS"
        print(f"{mark}  {verdict['target']}: {verdict['value']} (wanted {verdict['low']} to {verdict['high']})")


if __name__ == "__main__":
    typer.run(main)
