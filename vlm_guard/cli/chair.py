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
    mode: Annotated[
        str, typer.Option(help="Text pipeline: pattern (offline), wordnet (NLTK data) or both.")
    ] = "pattern",
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
    """Score captions with CHAIR: which objects they mention that are not in the image. No model is needed."""
    import json

    from vlm_guard.eval.tasks.chair.report import ground_truth, score_captions, side_by_side_lines, summary_lines

    if mode == "both" and (objects is not None or per_caption is not None):
        raise ValueError(
            "--mode both reads the ground truth in both modes, so it needs --coco, or --instances with --captions, not "
            "--objects; --per-caption is for one mode"
        )
    reports = []
    for name in ("pattern", "wordnet") if mode == "both" else (mode,):
        known = ground_truth(instances or [], reference_captions or [], objects, coco, name)
        reports.append(score_captions(captions, known, name, image_list=image_list, skip_unknown=skip_unknown))
    if mode == "both":
        both = {report.summary.mode: report.to_dict() for report in reports}
        typer.echo(json.dumps(both, indent=2) if as_json else "\n".join(side_by_side_lines(*reports)))
        return
    report = reports[0]
    if per_caption is not None:
        report.write_records(per_caption)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        typer.echo("\n".join(summary_lines(report)))
