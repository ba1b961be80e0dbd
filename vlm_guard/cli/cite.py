"""`vlm-guard cite`: what to cite, and what a run did in words for a paper."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of runs, methods (pai, pai:gain=0.4+var) and tasks (chair, pope). By default the software."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="bib: the BibTeX entries; text: the paragraph on a run, as LaTeX. By default both."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; by default the terminal.")] = None,
) -> None:
    """Print BibTeX of the software, methods, metrics and tasks, and one paragraph that says what a run did.

    The whole output is a file that BibTeX reads: the paragraph stands in it as a comment.
    """
    from vlm_guard.eval.report.citing import cited_by
    from vlm_guard.untrusted.printed_text import printable
    from vlm_guard.whole_files import write_atomically

    if only not in (None, "bib", "text"):
        raise ValueError(f"--only is {only!r}; it must be bib or text")
    cited = cited_by(what or [])
    if only == "text" and not cited.runs:
        raise ValueError("--only text is about a run; give the folder that 'vlm-guard eval --out' wrote")
    text = {None: cited.as_text, "bib": cited.bibtex, "text": lambda: cited.paragraphs() + "\n"}[only]()
    if out is None:
        typer.echo(printable(text), nl=False)
    else:
        write_atomically(out, text)
