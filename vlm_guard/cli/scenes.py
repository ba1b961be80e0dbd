"""`vlm-guard scenes`: write a folder of scenes in MSCOCO's format."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    directory: Annotated[Path, typer.Argument(help="Folder to make, in MSCOCO's format.")],
    split: Annotated[str, typer.Option(help="common, broken, held-out, crowded or small.")] = "common",
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes on every machine.")] = 7,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet to this picture file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one line of JSON.")] = False,
) -> None:
    """Write synthetic scenes that MSCOCO readers can load: images, instances and captions."""
    import json

    from vlm_guard.eval.scenes import contact_sheet, write_scenes

    folder = write_scenes(directory, split, count, seed)
    if sheet is not None:
        contact_sheet(folder, sheet)
    if as_json:
        written = {"directory": str(folder), "split": split, "count": count, "seed": seed}
        print(json.dumps(written | {"sheet": str(sheet) if sheet is not None else None}))
    else:
        print(f"{count} scenes of the split '{split}' (seed {seed}) are in {folder}.")
        if sheet is not None:
            print(f"The contact sheet is {sheet}.")
