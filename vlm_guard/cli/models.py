"""`vlm-guard models`: which model families work."""

from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False) -> None:
    """List the model families: tested, accepted after a check, or refused with the reason."""
    import json

    from vlm_guard.families.table import model_rows

    rows = model_rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("family", "model_type", "text backbones", "status", "note"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["family"], row["model_type"], ", ".join(row["text_models"]), row["status"], row["note"])
    console = Console()
    console.print(table)
    console.print(
        "\nAny other model whose decoder uses transformers' attention interface and marks images by "
        "config.image_token_id\nis accepted after the same check, which wrap makes on the model itself.",
        style="dim",
    )
