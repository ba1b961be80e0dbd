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

    from vlm_guard.cli._narrow import print_entry

    console = Console()
    for status in dict.fromkeys(row["status"] for row in rows):
        own = [row for row in rows if row["status"] == status]
        console.print(f"{status}\n", style="bold", highlight=False)
        for row in own:
            backbones = ", ".join(row["text_models"])
            facts = (row["family"], f"text backbones: {backbones}" if backbones else "", row["note"])
            print_entry(console, row["model_type"], "; ".join(filter(None, facts)))
        console.print()
    console.print(
        "Any other model whose decoder uses transformers' attention interface and marks images by "
        "config.image_token_id\nis accepted after the same check, which wrap makes on the model itself.",
        style="dim",
    )
