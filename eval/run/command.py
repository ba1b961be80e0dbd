"""What `vlm-guard eval` does once its settings are read."""

import sys
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from vlm_guard.eval.report.console import ProgressBar, print_results
from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.dry_run import print_dry_run
from vlm_guard.eval.run.results import RESULTS_FILE
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.untrusted.printed_text import printable_json


def run_command(settings: RunSettings, out: Path, *, dry_run: bool, as_json: bool) -> int:
    """Run an evaluation and print its results: a table, or with `as_json` the content of results.json on stdout.

    Progress goes to stderr, and only where that is a terminal.

    Returns:
        The exit code: 0, or 1 where records are missing in the end, so that the results are not those of a whole run.
    """
    messages = Console(stderr=True)
    if not messages.is_terminal:
        transformers_logging.disable_progress_bar()
    group = ProcessGroup(cpu=settings.device == "cpu")
    try:
        if dry_run:
            print_dry_run(Console(), settings, group, as_json=as_json)
            return 0
        results = evaluate(settings, out, progress=ProgressBar(messages), group=group)
    finally:
        group.close()
    if results is None:
        return 0
    if as_json:
        sys.stdout.write(printable_json(results.to_json()) + "\n")
    else:
        console = Console()
        print_results(console, results)
        console.print(f"\nresults: {out / RESULTS_FILE}", soft_wrap=True, markup=False, highlight=False)
    return 1 if results.shortfalls() else 0
