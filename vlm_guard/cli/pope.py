"""`vlm-guard pope`: score a file of yes/no answers."""

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    answers: Annotated[
        list[Path],
        typer.Argument(help="JSONL: question_id and answer (or text). One file per question file, or one."),
    ],
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="POPE question file; repeat for more strategies. Not for answers with a label (ask, lmms)."),
    ] = None,
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
    """Score answers to POPE's questions ("Is there a dog in the image?"). No model is needed.

    Reads answers of any tool, of vlm-guard ask (each method apart) and the files of lmms-eval --log_samples.
    """
    import json

    from rich.console import Console

    from vlm_guard.eval.report.scored_files import answer_records, score_files
    from vlm_guard.eval.tasks.pope.answer_checks import NUMBER_ONLY, number_only, require_read
    from vlm_guard.eval.tasks.pope.answer_files import read_method_answered
    from vlm_guard.eval.tasks.pope.leading_queries import score_leading
    from vlm_guard.eval.tasks.pope.report import leading_lines, parser_lines, summary_lines
    from vlm_guard.eval.tasks.pope.scoring import PARSERS, relabel_by_files, score_answers
    from vlm_guard.untrusted.printed_text import one_line, printable_json

    if leading and not questions:
        raise ValueError("--leading needs --questions: both sets of answers are to the same questions")
    answered = read_method_answered(questions or [], answers)
    led = read_method_answered(questions or [], leading) if leading else {}
    if leading and led.keys() != answered.keys():
        raise ValueError("the answers and the leading ones are of other methods; give files of the same methods")
    scored = {method: score_answers(*pair, parser) for method, pair in answered.items()}
    every = [text for _, texts in answered.values() for text in texts]
    require_read(answers, every, sum(summary.unparsed for summary in scored.values()))
    records: dict[str, Any] = {}
    lines: list[str] = []
    for method, (asked, texts) in answered.items():
        summary = scored[method]
        records[method] = summary.to_dict()
        lines += ["", one_line(method)] if len(answered) > 1 else []
        lines += summary_lines(summary)
        if parsers:
            records[method]["parsers"] = {name: score_answers(asked, texts, name).mean for name in PARSERS}
            lines += parser_lines(asked, texts)
        if relabelled:
            corrected = score_answers(*relabel_by_files(asked, texts, relabelled), parser)
            records[method]["relabelled"] = corrected.to_dict()
            title = "With the labels of " + ", ".join(one_line(path.name) for path in relabelled)
            lines += ["", *summary_lines(corrected, title)]
        if leading:
            changes = score_leading(asked, texts, led[method][1], parser)
            records[method]["leading"] = changes.to_dict()
            lines += leading_lines(changes)
    if questions and number_only(answers):
        typer.echo(f"note: {NUMBER_ONLY}", err=True)
    by_image = {method: answer_records(asked, texts, parser) for method, (asked, texts) in answered.items()}
    table = score_files("pope", by_image, records) if all(by_image.values()) else None
    if table is not None:
        for item in table.methods:
            records[item.label] |= table.to_dict(item.label)
    found = {"methods": records} if len(records) > 1 else next(iter(records.values()))
    typer.echo(printable_json(json.dumps(found, indent=2)) if as_json else "\n".join(lines).lstrip("\n"))
    if table is not None and not as_json:
        table.print(Console())
