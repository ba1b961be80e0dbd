"""The `vlm-guard` command. Each other file in this folder is one sub-command, found by scanning it.

A command file defines `command(...)` with Typer annotations; its name is the file's (underscores become dashes). Where
its options are made from settings, `command_with_settings()` gives the whole command. Heavy imports belong inside the
function, so that `--help` answers without importing torch. User errors are ValueError, TypeError, FileNotFoundError or
ImportError with a helpful message: they are printed in one line, exit code 2. One that has `problems` says each.

May import: everything.
"""

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

USER_ERRORS = (ValueError, TypeError, OSError, ImportError)
OK, FAILED, WRONG_USE = 0, 1, 2


def build_app(called: str | None = None):  # noqa: ANN201 - the type would need typer at import
    """The Typer application with every command of this folder.

    A command whose options take a while to make (`command_with_settings`) gets them only if it is the one `called`.
    """
    import typer

    app = typer.Typer(
        name="vlm-guard",
        help="Fewer hallucinations from Hugging Face vision-language models, and scores that can be trusted.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def top(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            from vlm_guard import __version__

            print(__version__)
            raise typer.Exit

    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        module = import_module(f"vlm_guard.cli.{path.stem}")
        name = path.stem.replace("_", "-")
        make = getattr(module, "command_with_settings", None) if name == called else None
        settings = getattr(module, "context_settings", None)
        app.command(name, context_settings=settings)(module.command if make is None else make())
    return app


def _explained(error: Exception) -> str:
    """What an error says; of an import that failed first what lies behind it, where that is known."""
    said = str(error)
    if not isinstance(error, ImportError):
        return said
    from vlm_guard.families.processor_needs import torchvision_problem

    problem = torchvision_problem()
    if not problem or problem in said:
        return said
    return f"{problem}. What failed on it: {said.partition('. ')[0]}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 the run failed, 2 wrong use."""
    import typer

    from vlm_guard.untrusted.printed_text import one_line

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a sign that the terminal cannot show must not stop a run
    # Typer has carried its own copy of click's errors since some version; their base is found by name in either.
    usage_error: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = build_app(given[0] if given else None)(args=arguments, standalone_mode=False)
    except usage_error as error:
        error.show()
        sys.exit(WRONG_USE)
    except (typer.Abort, KeyboardInterrupt):
        if os.environ.get("RANK", "0") == "0":  # one of the processes that a launcher started speaks for all
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; that is its right. Nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OK)
    except USER_ERRORS as error:
        if os.environ.get("VLM_GUARD_TRACEBACK"):
            raise
        for problem in getattr(error, "problems", None) or [_explained(error)]:
            print(f"error: {one_line(problem) or type(error).__name__}", file=sys.stderr)
        sys.exit(WRONG_USE)
    sys.exit(code if isinstance(code, int) else OK)
