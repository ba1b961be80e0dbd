"""``python -m vlm_guard.eval.training.behaviour OUT``: choose the checkpoint by what it does, then measure it.

Snapshots are compared on scenes of a seed of their own; the chosen one is exported and measured on two more seeds,
which is written to ``behaviour.json`` beside the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

CHOICE_SEED = 501
EVALUATION_SEEDS = (601, 602)
SMALL = 200


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


def choose(folder: Path, count: int) -> tuple[Path, list[dict[str, Any]]]:
    """Measure every snapshot on the choice seed; the one nearest to the targets, the later one among equals."""
    from transformers import PreTrainedTokenizerFast

    from vlm_guard.eval.training.behaviour_measures import Trial
    from vlm_guard.eval.training.checkpoints import load_weights, read_progress
    from vlm_guard.eval.training.model import new_model
    from vlm_guard.eval.training.targets import total_shortfall

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    model = new_model(0).eval()
    results = []
    for path in sorted((folder / "snapshots").glob("*.safetensors")):
        load_weights(path, model)
        measured = {
            split: Trial(model, tokenizer, split, CHOICE_SEED, count).basics() for split in ("common", "broken")
        }
        shortfall = total_shortfall(measured)
        print(f"{path.name}: shortfall {shortfall}")
        results.append({"snapshot": path.name, **read_progress(path), "shortfall": shortfall, **measured})
    if not results:
        raise FileNotFoundError(f"No snapshots in {folder / 'snapshots'}; train first.")
    best = min(reversed(results), key=lambda result: result["shortfall"])
    return folder / "snapshots" / best["snapshot"], results


def measure(folder: Path, count: int, seeds: tuple[int, ...] = EVALUATION_SEEDS) -> dict[str, Any]:
    """The full measurement of an exported model, averaged over ``seeds``.

    Args:
        folder: Folder that ``from_pretrained`` can load.
        count: Scenes per split and seed; wordings, counts, positions and leading questions use 200 at most.
        seeds: Evaluation seeds.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from vlm_guard.eval.training import behaviour_measures as measures
    from vlm_guard.eval.training.targets import FULL_TARGETS, total_shortfall, verdicts

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    runs = []
    for seed in seeds:
        run: dict[str, Any] = {}
        for split in ("common", "broken", "held-out", "crowded"):
            run[split] = measures.Trial(model, tokenizer, split, seed, count).basics()
            print(f"seed {seed}, {split}: {json.dumps(run[split]['detailed'])}", flush=True)
        trial = measures.Trial(model, tokenizer, "common", seed + 1000, min(SMALL, count))
        run["wording"] = measures.wordings(trial)
        run["unknown"] = measures.unknown_things(trial)
        run["counting"] = measures.counting(trial)
        run["positions"] = measures.positions(trial)
        run["leading"] = measures.leading(trial)
        runs.append(run)
    mean = average(runs)
    return {
        "decoding": "greedy, float32",
        "seeds": list(seeds),
        "scenes_per_split_and_seed": count,
        "scenes_per_seed_for_wording_unknown_counting_positions_leading": min(SMALL, count),
        "targets": verdicts(mean),
        "shortfall": total_shortfall(mean, FULL_TARGETS),
        "mean": mean,
        "runs": dict(zip(map(str, seeds), runs)),
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Training folder, or with --model-only a folder with a model.")],
    count: Annotated[int, typer.Option(help="Scenes per split and seed.")] = 500,
    choice_count: Annotated[int, typer.Option(help="Scenes per split for comparing snapshots.")] = 300,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    model_only: Annotated[bool, typer.Option(help="Measure the model in FOLDER; choose nothing.")] = False,
) -> None:
    """Choose a snapshot by behaviour, export it, and write behaviour.json beside it."""
    import torch

    from vlm_guard.eval.training.checkpoints import write_atomically
    from vlm_guard.eval.training.run import export

    torch.set_num_threads(threads)
    target = folder
    if not model_only:
        snapshot, results = choose(folder, choice_count)
        target = export(folder, snapshot)
        write_atomically(target / "selection.json", json.dumps({"chosen": snapshot.name, "snapshots": results}) + "\n")
        for name in ("recipe.json", "log.jsonl"):
            write_atomically(target / f"training_{name}", (folder / name).read_text(encoding="utf-8"))
    report = measure(target, count)
    write_atomically(target / "behaviour.json", json.dumps(report, indent=1) + "\n")
    for verdict in report["targets"]:
        mark = "met " if verdict["met"] else "MISS"
        print(f"{mark}  {verdict['target']}: {verdict['value']} (wanted {verdict['low']} to {verdict['high']})")


if __name__ == "__main__":
    typer.run(main)
