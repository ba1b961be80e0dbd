"""``python -m vlm_guard.eval.training OUT``: train the built-in model, or go on with an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def main(
    out: Annotated[Path, typer.Argument(help="Working folder; a second start goes on where the first was killed.")],
    minutes: Annotated[float | None, typer.Option(help="Time for all stages; default 78 (CPU), 20 (GPU).")] = None,
    scenes: Annotated[int, typer.Option(help="Training scenes to render (28 kB each).")] = 100_000,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of weights, order and text.")] = 0,
) -> None:
    """Train the built-in model from nothing: render scenes, learn to see, learn to speak, export."""
    import torch

    from vlm_guard.eval.training.recipe import recipe_for
    from vlm_guard.eval.training.run import train

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target = train(out, recipe_for(device, minutes, scenes=scenes, seed=seed), device)
    print(f"The model is in {target}. Measure it: python -m vlm_guard.eval.training.behaviour {out}")


if __name__ == "__main__":
    typer.run(main)
