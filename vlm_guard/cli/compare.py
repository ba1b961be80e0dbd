"""`vlm-guard compare`: methods of one or several runs side by side."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of eval, or files that caption or ask wrote.")],
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; by default the first.")] = None,
    resamples: Annotated[int | None, typer.Option(min=100, help="Bootstrap resamples; by default the run's.")] = None,
    decoding_differs: Annotated[
        bool,
        typer.Option("--decoding-differs", help="Take greedy, sampled and beam search runs together, and say so."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Paired differences with bootstrap intervals; refuses runs of different images, prompts or metric variants."""
    from rich.console import Console

    from vlm_guard.eval.report.compare import compare_runs
    from vlm_guard.eval.report.console import print_results
    from vlm_guard.untrusted.printed_text import printable_json

    comparison = compare_runs(folders, baseline, resamples, decoding_differs=decoding_differs)
    if as_json:
        typer.echo(printable_json(comparison.results.to_json()))
    else:
        print_results(Console(), comparison.results)
