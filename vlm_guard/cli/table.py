"""`vlm-guard table`: the numbers of runs for a paper, a README or a program."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of eval, or files that caption or ask wrote.")],
    style: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="markdown, latex, csv, json or html. By default markdown; on a terminal lines of its width.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas: chair_i,recall,tokens_per_second (--format csv lists the metrics)."
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; by default the first.")] = None,
    decoding_differs: Annotated[
        bool,
        typer.Option("--decoding-differs", help="Take greedy, sampled and beam search runs together, and say so."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; by default the terminal.")] = None,
) -> None:
    """Write the results as a table with paired differences."""
    import shutil
    import sys

    from vlm_guard.eval.report.chosen_columns import chosen_columns, usual_columns
    from vlm_guard.eval.report.compare import compare_runs
    from vlm_guard.eval.report.line_table import line_table
    from vlm_guard.eval.report.tables import FORMATS, render_table
    from vlm_guard.untrusted.printed_text import printable, printable_json
    from vlm_guard.whole_files import write_atomically

    if style is not None and style not in FORMATS:
        raise ValueError(f"the table format is {style!r}; it must be one of {', '.join(FORMATS)}")
    compared = compare_runs(folders, baseline, decoding_differs=decoding_differs)
    chosen = None if columns is None else chosen_columns(compared.results, compared.records, columns.split(","))
    if style is None and out is None and sys.stdout.isatty():
        shown = usual_columns(compared.results) if chosen is None else chosen
        typer.echo(printable(line_table(compared.results, shown, shutil.get_terminal_size().columns)), nl=False)
        return
    text = render_table(compared.results, style or "markdown", chosen)
    if out is None:
        typer.echo(printable_json(text) if style == "json" else printable(text), nl=False)
    else:
        write_atomically(out, text)
