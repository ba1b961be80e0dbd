"""`vlm-guard judge`: answers that a judge has to read, as a file of prompts; and its verdicts, as numbers."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders written by vlm-guard eval, with a task that is judged.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the prompts for the judge to this JSONL.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Text file with the prompt, its fields in braces, instead of the task's own.")
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="What the judge said: a JSONL of id (as in the prompts) and verdict.")
    ] = None,
    style: Annotated[str, typer.Option("--format", help="markdown, latex, csv, json or html.")] = "markdown",
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; by default the first.")] = None,
) -> None:
    """Write the prompts for a judge (--out), or read its verdicts (--verdicts). No service is called."""
    from vlm_guard.eval.report.judge import judge_runs, write_prompts
    from vlm_guard.eval.report.tables import FORMATS, render_table
    from vlm_guard.untrusted.printed_text import printable, printable_json

    if (out is None) == (verdicts is None):
        raise ValueError("give --out FILE to write the prompts, or --verdicts FILE to read what the judge said")
    if style not in FORMATS:
        raise ValueError(f"the table format is {style!r}; it must be one of {', '.join(FORMATS)}")
    if out is not None:
        count = write_prompts(folders, out, template)
        typer.echo(f"{out}: {count} prompts; answer them as lines of id and verdict, then give --verdicts")
        return
    assert verdicts is not None  # one of the two is given
    text = render_table(judge_runs(folders, verdicts, baseline).results, style)
    typer.echo(printable_json(text) if style == "json" else printable(text), nl=False)
