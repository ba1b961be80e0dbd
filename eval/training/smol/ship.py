"""``python -m vlm_guard.eval.training.smol.ship OUT``: put a finished run's trained part into the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def ship(out: Path, target: Path) -> None:
    """Copy the trained part of a finished run, its recipe and its log.

    Args:
        out: the run's folder.
        target: where to, such as ``vlm_guard/smol_model/trained``.

    Raises:
        FileNotFoundError: the run has no trained part.
        ValueError: its last step is missing from the log, or the file is too large to ship.
    """
    from vlm_guard.eval.training.smol.recipe import MOST_BYTES
    from vlm_guard.whole_files import write_atomically

    trained = out / "trained.safetensors"
    if not trained.is_file():
        raise FileNotFoundError(f"{trained} is not there: python -m vlm_guard.eval.training.smol {out} goes on with it")
    log = (out / "log.jsonl").read_text(encoding="utf-8")
    last = json.loads(log.splitlines()[-1])
    if last["stage"] != "speak" or last["of"] - last["step"] > 8:
        raise ValueError(f"{out / 'log.jsonl'} ends with step {last['step']} of {last['of']} of {last['stage']}")
    content = trained.read_bytes()
    if len(content) > MOST_BYTES:
        raise ValueError(f"{trained} has {len(content)} bytes; at most {MOST_BYTES} are shipped")
    target.mkdir(parents=True, exist_ok=True)
    partial = target / "trained.safetensors.partial"
    partial.write_bytes(content)
    partial.replace(target / "trained.safetensors")
    write_atomically(target / "recipe.json", (out / "recipe.json").read_text(encoding="utf-8"))
    write_atomically(target / "log.jsonl", log)


def main(out: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Put what was trained beside the code that uses it."""
    from vlm_guard.smol_model.adapter import TRAINED_FILE

    ship(out, TRAINED_FILE.parent)
    print(f"shipped in {TRAINED_FILE.parent}; then: vlm-guard calibrate smol --out vlm_guard/profiles/smol.json")


if __name__ == "__main__":
    typer.run(main)
