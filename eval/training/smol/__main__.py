"""``python -m vlm_guard.eval.training.smol OUT``: train the small model, or go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def main(
    out: Annotated[Path, typer.Argument(help="Working folder; a second start goes on where the first was killed.")],
    pictures: Annotated[int, typer.Option(help="Pictures of the second stage.", min=16)] = 6_000,
    see_pictures: Annotated[int, typer.Option(help="Pictures of the first stage.", min=32)] = 6_000,
    workers: Annotated[int, typer.Option(help="Processes of one CPU thread each.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of weights, pictures, order and text.", min=0)] = 0,
    source: Annotated[
        str | None, typer.Option(help="Folder or Hugging Face id of SmolLM2; default the package.")
    ] = None,
) -> None:
    """Train tower, projector and low-rank changes: learn to see, learn to speak, export."""
    from vlm_guard.eval.training.smol.recipe import Recipe
    from vlm_guard.eval.training.smol.run import train

    recipe = Recipe(speak_pictures=pictures, see_pictures=see_pictures, workers=workers, seed=seed)
    print(f"The trained part is in {train(out, recipe, source)}.")


if __name__ == "__main__":
    typer.run(main)
