"""`vlm-guard pope`: score a file of yes/no answers."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    answers: Annotated[
        list[Path], typer.Argument(help="JSONL: question_id and answer (or text). One file per question file, or one.")
    ],
    questions: Annotated[list[Path], typer.Option(help="POPE question file; repeat for more strategies.")],
    parser: Annotated[str, typer.Option(help="How to read the answers: strict, pope, opera or vcd.")] = "strict",
    leading: Annotated[
        list[Path] | None,
        typer.Option(help="Answers to the same questions asked with a leading sentence; repeat like ANSWERS."),
    ] = None,
    relabelled: Annotated[
        list[Path] | None,
        typer.Option(help="Question file with other labels for the same numbers, such as RePOPE's; repeat for more."),
    ] = None,
    parsers: Annotated[bool, typer.Option("--parsers", help="Also read the answers by every parser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score answers to POPE's questions ("Is there a dog in the image?"). No model is needed."""
    import json

    from vlm_guard.eval.tasks.pope.leading_queries import score_leading
    from vlm_guard.eval.tasks.pope.report import leading_lines, parser_lines, summary_lines
    from vlm_guard.eval.tasks.pope.scoring import PARSERS, read_answered, read_questions, relabel, score_answers

    asked, texts = read_answered(questions, answers)
    summary = score_answers(asked, texts, parser)
    record, lines = summary.to_dict(), list(summary_lines(summary))
    if parsers:
        record["parsers"] = {name: score_answers(asked, texts, name).mean for name in PARSERS}
        lines += parser_lines(asked, texts)
    if relabelled:
        labels = [question for path in relabelled for question in read_questions(path)]
        corrected = score_answers(*relabel(asked, texts, labels), parser)
        record["relabelled"] = corrected.to_dict()
        lines += ["", *summary_lines(corrected, "With the labels of " + ", ".join(path.name for path in relabelled))]
    if leading:
        changes = score_leading(asked, texts, read_answered(questions, leading)[1], parser)
        record["leading"] = changes.to_dict()
        lines += leading_lines(changes)
    typer.echo(json.dumps(record, indent=2) if as_json else "\n".join(lines))
