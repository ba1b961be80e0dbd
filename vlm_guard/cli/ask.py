"""`vlm-guard ask`: answers to a file of questions about pictures, plain and guarded, in one file."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    questions: Annotated[
        str, typer.Argument(help="JSONL: image, question, and where known options and answer; POPE's files too.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, one answer a line; the run works in OUT.run beside it.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures. (default: that of QUESTIONS)")] = None,
    suffix: Annotated[str | None, typer.Option(help="Text after each question, such as ' Answer yes or no.'.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Token limit of answers. [128]", min=1)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show one prompt and the predicted time; keep nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> int:
    """Ask questions of your own about pictures of your own, with one or several methods; the answers go to --out.

    Answers are scored where the right one is given: with options by the letter they name, for yes and no by their first
    word. Run it again with the same --out to go on where it was stopped. vlm-guard pope OUT scores yes/no answers,
    vlm-guard report OUT shows all beside the pictures. To share the work, start the same options by "accelerate launch
    -m vlm_guard ask" (GPUs) or "torchrun --nproc-per-node 2 -m vlm_guard ask" (CPU).
    """
    return run(questions, out, images, suffix, max_new_tokens, dry_run, as_json, {})


def run(
    questions: str,
    out: Path,
    images: Path | None,
    suffix: str | None,
    max_new_tokens: int | None,
    dry_run: bool,
    as_json: bool,
    flags: dict[str, Any],
) -> int:
    """Run with the settings of a run that were given as options."""
    from vlm_guard.cli._setting_flags import read_flags
    from vlm_guard.eval.run.command import run_own
    from vlm_guard.eval.run.settings import read_settings

    own = {
        "data": f"questions:{questions}",
        "tasks": ["ask"],
        "ask.images": images,
        "ask.suffix": suffix,
        "ask.max_new_tokens": max_new_tokens,
    }
    return run_own(read_settings(None, read_flags(flags) | own), out, dry_run=dry_run, as_json=as_json)


def command_with_settings() -> Callable[..., int]:
    """The command with the options of a run; made only when it is called, since they need pydantic."""
    from vlm_guard.cli._setting_flags import flags_for_own_data, with_options

    return with_options(command, flags_for_own_data(), run, behind=5)
