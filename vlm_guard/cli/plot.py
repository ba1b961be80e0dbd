"""`vlm-guard plot`: pictures of a comparison."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of eval, or files that caption or ask wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the files; by default 'plots' in the first folder.")
    ] = None,
    style: Annotated[str, typer.Option("--format", help="png, svg or pdf.")] = "png",
    baseline: Annotated[str | None, typer.Option(help="Method that is drawn first; by default the first.")] = None,
) -> None:
    """Draw CHAIR against recall and length, hallucination over mention order, and POPE's ladder."""
    from vlm_guard.eval.report.compare import compare_runs
    from vlm_guard.eval.report.plots import save_plots
    from vlm_guard.eval.run.results import run_folder

    target = out if out is not None else run_folder(folders[0]) / "plots"
    for path in save_plots(compare_runs(folders, baseline), target, style):
        typer.echo(path)
