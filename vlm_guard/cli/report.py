"""`vlm-guard report`: the results as one HTML page with pictures."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of eval, or files that caption or ask wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; by default report.html in the first folder.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the data set, if it is not where it was at the run.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; by default the first.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many images, evenly spread.")] = 500,
) -> None:
    """Write one self-contained page: numbers, pictures, captions with hallucinated mentions marked, filters."""
    from vlm_guard.eval.report.compare import compare_runs
    from vlm_guard.eval.report.page import build_report
    from vlm_guard.eval.run.results import run_folder
    from vlm_guard.whole_files import write_atomically

    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"there is no folder {images}")
    page = build_report(compare_runs(folders, baseline), images=images, limit=limit)
    target = out if out is not None else run_folder(folders[0]) / "report.html"
    write_atomically(target, page)
    typer.echo(target)
