"""`vlm-guard chair`: score a file of captions."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    captions: Annotated[Path, typer.Argument(help="JSONL: image_id | image | question_id, and caption | text.")],
    instances: Annotated[
        list[Path] | None, typer.Option(help="MSCOCO instances_*.json of the images; may be repeated.")
    ] = None,
    reference_captions: Annotated[
        list[Path] | None, typer.Option("--captions", help="MSCOCO captions_*.json; may be repeated.")
    ] = None,
    objects: Annotated[
        Path | None,
        typer.Option(help="Object sets instead of annotations: JSON of image id to a list of names; .gz allowed."),
    ] = None,
    coco: Annotated[Path | None, typer.Option(help="Or a folder in MSCOCO's format.")] = None,
    mode: Annotated[str, typer.Option(help="Text pipeline: pattern (offline) or wordnet (NLTK data).")] = "pattern",
    image_list: Annotated[
        Path | None, typer.Option(help="JSONL with question_id and image, for captions that have question_id only.")
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out, and count, captions of images without ground truth.")
    ] = False,
    per_caption: Annotated[
        Path | None, typer.Option(help="Write one record per caption with every mention's place to this JSONL.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score captions with CHAIR: which objects they mention that are not in the image. No model is needed.

    Reads captions of any tool, of vlm-guard caption (each method apart) and the files of lmms-eval --log_samples.
    """
    import json

    from vlm_guard.eval.tasks.chair.report import ground_truth, score_methods, summary_lines, write_method_records
    from vlm_guard.untrusted.printed_text import one_line, printable_json

    known = ground_truth(instances or [], reference_captions or [], objects, coco, mode)
    reports = score_methods(captions, known, mode, image_list=image_list, skip_unknown=skip_unknown)
    if per_caption is not None:
        write_method_records(reports, per_caption)
    if as_json:
        found = {method: report.to_dict() for method, report in reports.items()}
        shown = {"methods": found} if len(found) > 1 else next(iter(found.values()))
        typer.echo(printable_json(json.dumps(shown, indent=2)))
        return
    for place, (method, report) in enumerate(reports.items()):
        if len(reports) > 1:
            typer.echo(f"{chr(10) if place else ''}{one_line(method)}")
        typer.echo("\n".join(summary_lines(report)))
