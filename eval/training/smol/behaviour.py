"""``python -m vlm_guard.eval.training.smol.behaviour OUT.json``: what the assembled model does, on fresh scenes."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer


def main(
    out: Annotated[Path, typer.Argument(help="JSON file to write.")],
    count: Annotated[int, typer.Option(help="Scenes per split and seed.", min=1)] = 500,
    seeds: Annotated[str, typer.Option(help="Seeds of the scenes, comma separated.")] = "701,702",
    model: Annotated[str, typer.Option(help="smol, or a folder with such a model.")] = "smol",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    parts: Annotated[str, typer.Option(help="Splits and details.")] = "common,broken,details",
    workers: Annotated[int, typer.Option(help="Processes, of one CPU thread each.", min=1)] = 2,
) -> None:
    """Measure captions, POPE and leading questions as the built-in model's are, and compare with the targets."""
    from vlm_guard.builtin_model import is_shipped, shipped_folder
    from vlm_guard.environment import library_versions, processor_name
    from vlm_guard.eval.training.behaviour import measure, print_verdicts
    from vlm_guard.eval.training.loop import CHILD_ENVIRONMENT
    from vlm_guard.eval.training.targets import SMOL_TARGETS
    from vlm_guard.whole_files import write_atomically

    os.environ.update(CHILD_ENVIRONMENT)
    folder = shipped_folder(model) if is_shipped(model) else Path(model)
    numbers = tuple(int(part) for part in seeds.split(","))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        report = measure(folder, count, pool, numbers, targets=SMOL_TARGETS, dtype=dtype, parts=parts.split(","))
    report["machine"] = {"processor": processor_name(), "versions": library_versions()}
    write_atomically(out, json.dumps(report, indent=1) + "\n")
    print_verdicts(report)


if __name__ == "__main__":
    typer.run(main)
