"""`vlm-guard caption`: captions of a folder of pictures, plain and guarded, in one file."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    pictures: Annotated[
        str, typer.Argument(help="Folder of pictures, or LIST.jsonl: image (beside the list), and image_id if known.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, one caption a line; the run works in OUT.run beside it.")],
    prompt: Annotated[str | None, typer.Option(help="Instruction. [Please describe this image in detail.]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Token limit of captions. [512]", min=1)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show one prompt and the predicted time; keep nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> int:
    """Describe pictures of your own, with one or several methods; the captions go to --out.

    Run it again with the same --out to go on where it was stopped. vlm-guard chair OUT scores the captions if they are
    MSCOCO's pictures, vlm-guard report OUT shows them beside the pictures. To share the work, start the same options by
    "accelerate launch -m vlm_guard caption" (GPUs) or "torchrun --nproc-per-node 2 -m vlm_guard caption" (CPU).
    """
    return run(pictures, out, prompt, max_new_tokens, dry_run, as_json, {})


def run(
    pictures: str,
    out: Path,
    prompt: str | None,
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
        "data": f"folder:{pictures}",
        "tasks": ["caption"],
        "caption.prompt": prompt,
        "caption.max_new_tokens": max_new_tokens,
    }
    return run_own(read_settings(None, read_flags(flags) | own), out, dry_run=dry_run, as_json=as_json)


def command_with_settings() -> Callable[..., int]:
    """The command with the options of a run; made only when it is called, since they need pydantic."""
    from vlm_guard.cli._setting_flags import flags_for_own_data, with_options

    return with_options(command, flags_for_own_data(), run, behind=4)
