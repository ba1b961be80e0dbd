"""What `vlm-guard eval`, `caption` and `ask` do once their settings are read."""

import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from vlm_guard.eval.report.answers import MOST_SHOWN, print_answers
from vlm_guard.eval.report.console import print_results, unreadable_images
from vlm_guard.eval.report.progress import ProgressBar
from vlm_guard.eval.run.answers import folder_for, read_answers, write_answers
from vlm_guard.eval.run.distributed import ProcessGroup
from vlm_guard.eval.run.early_checks import refuse_mistakes
from vlm_guard.eval.run.engines.chat_server import ServerLost
from vlm_guard.eval.run.interruption import Terminated, interrupted_once, kept_answers, leave
from vlm_guard.eval.run.results import RESULTS_FILE, RunResults
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings, method_directories
from vlm_guard.untrusted.printed_text import one_line, printable_json

INTERRUPTED, TERMINATED = 130, 143


def run_command(settings: RunSettings, out: Path, *, dry_run: bool, as_json: bool, answers: Path | None = None) -> int:
    """Run an evaluation and print its results: a table, or with `as_json` the content of results.json on stdout.

    Progress goes to stderr: a bar on a terminal, elsewhere a line a minute.

    Args:
        settings: what to run.
        out: folder of the run.
        dry_run: show a prompt and the predicted time only.
        as_json: print JSON.
        answers: a file that gets every answer at the end (`vlm_guard.eval.run.answers`).

    Returns:
        The exit code: 0; 1 where records are missing in the end, so that the results are not those of a whole run, or
        where a server is gone; 130
        after Ctrl-C and 143 after SIGTERM, which leave the answers of all finished batches in `out`.
    """
    if os.environ.get("RANK", "0") == "0":  # one of the processes that a launcher started speaks for all
        refuse_mistakes(settings, None if dry_run else out)
    messages = Console(stderr=True)
    if settings.endpoint is None and not messages.is_terminal:
        from transformers.utils import logging  # a run that a server answers does without

        logging.disable_progress_bar()
    group = ProcessGroup(cpu=settings.device == "cpu")
    progress = ProgressBar(messages)
    try:
        # In a single process Ctrl-C stays Python's own: pressed again, it ends what is still at work.
        with interrupted_once() if group.size > 1 else interrupted_once((signal.SIGTERM,)):
            if dry_run:
                from vlm_guard.eval.run.dry_run import print_dry_run

                print_dry_run(Console(), settings, group, as_json=as_json)
                return 0
            results = evaluate(settings, out, progress=progress, group=group)
    except KeyboardInterrupt as interrupt:
        code = TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
        if group.is_main:
            if group.size > 1 or not progress.total:
                # What other processes, or an earlier run, have answered is known from their files only.
                kept = kept_answers(out, method_directories(settings.methods))
                progress.done = min(progress.total, kept) if progress.total else kept
            print(progress.interrupted_text(answers or out), file=sys.stderr)
        if group.size > 1 or code == TERMINATED:
            leave(code)  # whoever sent SIGTERM wants the process gone, whatever it is part of
        return code
    except ServerLost as error:
        print(one_line(f"error: {error}; run the same command again to go on where it stopped"), file=sys.stderr)
        return 1
    finally:
        group.close()
    if results is None:
        return 0
    left_out = write_answers(results, answers) if answers is not None else 0
    if as_json:
        sys.stdout.write(printable_json(results.to_json()) + "\n")
    else:
        if answers is not None and results.data["images"] <= MOST_SHOWN:
            print_answers(Console(), read_answers(answers))
        _print_end(results, out, answers, left_out)
    return 1 if results.shortfalls() else 0


def _print_end(results: RunResults, out: Path, answers: Path | None, left_out: int) -> None:
    console = Console()
    print_results(console, results)
    lines = [f"results: {out / RESULTS_FILE}"]
    if answers is not None:
        skipped = max(len(method.skipped_images) for method in results.methods)
        without = f" (without {left_out}: {unreadable_images(skipped)})" if left_out else ""
        lines = [f"answers: {answers}{without}", *lines]
    console.print("\n" + "\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def run_own(settings: RunSettings, answers: Path, *, dry_run: bool, as_json: bool) -> int:
    """Run `caption` or `ask`: as `run_command`, in a folder beside the file of answers.

    Raises:
        ValueError: the file is there and no run has written it.
    """
    return run_command(settings, folder_for(answers), dry_run=dry_run, as_json=as_json, answers=answers)
