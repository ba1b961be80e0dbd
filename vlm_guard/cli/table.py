"""`vlm-guard table`: the numbers of runs for a paper, a README or a program."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of eval, or files that caption or ask wrote.")],
    style: Annotated[str, typer.Option("--format", help="markdown, csv, json or html.")] = "markdown",
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; by default the first.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; by default the terminal.")] = None,
) -> None:
    """Write the results as a table with paired differences."""
    from vlm_guard.eval.report.compare import compare_runs
    from vlm_guard.eval.report.tables import FORMATS, render_table
    from vlm_guard.untrusted.printed_text import printable, printable_json
    from vlm_guard.whole_files import write_atomically

    if style not in FORMATS:
        raise ValueError(f"the table format is {style!r}; it must be one of {', '.join(FORMATS)}")
    text = render_table(compare_runs(folders, baseline).results, style)
    if out is None:
        typer.echo(printable_json(text) if style == "json" else printable(text), nl=False)
    else:
        write_atomically(out, text)
