"""The option of the commands that load a model and decode much with it."""

from typing import Annotated

import typer

PackWeights = Annotated[
    bool,
    typer.Option(
        "--pack-weights",
        help="CPU: lay linear layers out for oneDNN; faster on some processors, twice their memory.",
    ),
]
