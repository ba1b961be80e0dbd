"""`vlm-guard chair`: score a file of captions."""

from pathlib import Path
from typing import Annotated

import typer

_MODES = ("pattern", "wordnet", "both")


def command(
    captions: Annotated[
        list[Path],
        typer.Argument(help="JSONL: image_id | image | question_id, and caption | text. Several are compared."),
    ],
    instances: Annotated[
        list[Path] | None, typer.Option(help="MSCOCO instances_*.json of the images; may be repeated.")
    ] = None,
    reference_captions: Annotated[
        list[Path] | None, typer.Option("--captions", help="MSCOCO captions_*.json; may be repeated.")
    ] = None,
    objects: Annotated[
        Path | None,
        typer.Option(
            help="Object sets instead of annotations, made with the same --mode: JSON of image id to a list of names; "
            ".gz allowed."
        ),
    ] = None,
    coco: Annotated[Path | None, typer.Option(help="Or a folder in MSCOCO's format.")] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="Text pipeline: pattern (offline), wordnet (needs NLTK data), or both side by side (needs --coco, or "
            "--instances with --captions; without --objects and --per-caption)."
        ),
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
    """Score captions with CHAIR: which objects they mention that are not in the image. No model is needed.

    Reads captions of any tool, of vlm-guard caption (each method apart) and the files of lmms-eval --log_samples. Every
    number has its bootstrap interval over pictures; of several files or methods, the paired differences to the first.
    """
    import json

    from rich.console import Console

    from vlm_guard.eval.report.scored_files import caption_records, labelled_reports, score_files
    from vlm_guard.eval.tasks.chair.report import (
        ground_truth,
        score_methods,
        side_by_side_lines,
        summary_lines,
        write_method_records,
    )
    from vlm_guard.untrusted.printed_text import one_line, printable_json

    _check_mode(mode, objects, per_caption)
    by_mode = {}
    for name in ("pattern", "wordnet") if mode == "both" else (mode,):
        known = ground_truth(instances or [], reference_captions or [], objects, coco, name)
        by_mode[name] = labelled_reports(
            [(path, score_methods(path, known, name, image_list, skip_unknown)) for path in captions]
        )
    reports = next(iter(by_mode.values()))
    scored = None
    if mode != "both":
        records = {label: caption_records(report.scores) for label, report in reports.items() if report.scores}
        summaries = {label: report.summary.to_dict() for label, report in reports.items()}
        scored = score_files("chair", records, summaries) if records else None
    if per_caption is not None:
        write_method_records(reports, per_caption)
    if as_json:
        kinds = {method: {name: of_mode[method].to_dict() for name, of_mode in by_mode.items()} for method in reports}
        found = {method: kind if mode == "both" else kind[mode] for method, kind in kinds.items()}
        if scored is not None:
            for item in scored.methods:
                found[item.label] |= scored.to_dict(item.label)
        shown = {"methods": found} if len(found) > 1 else next(iter(found.values()))
        typer.echo(printable_json(json.dumps(shown, indent=2)))
        return
    for place, (method, report) in enumerate(reports.items()):
        if len(reports) > 1:
            typer.echo(f"{chr(10) if place else ''}{one_line(method)}")
        of_modes = [of_mode[method] for of_mode in by_mode.values()]
        typer.echo("\n".join(side_by_side_lines(*of_modes) if mode == "both" else summary_lines(report)))
    if scored is not None:
        scored.print(Console())


def _check_mode(mode: str, objects: Path | None, per_caption: Path | None) -> None:
    """Refuse a mode that does not exist or does not go with the other options; say where object sets may not fit it.

    Raises:
        ValueError: it is so; the message says what the mode needs.
    """
    import difflib
    import sys

    from vlm_guard.untrusted.printed_text import one_line

    if mode not in _MODES:
        near = difflib.get_close_matches(mode, _MODES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"--mode is {mode!r}; it must be one of {', '.join(_MODES)}.{hint}")
    if mode == "both" and objects is not None:
        raise ValueError(
            "--mode both reads the ground truth in both modes, but the objects in --objects were read in one; give "
            "--coco FOLDER, or --instances FILE with --captions FILE, instead"
        )
    if mode == "both" and per_caption is not None:
        raise ValueError(
            "--mode both scores every caption twice, but --per-caption writes the records of one mode; give --mode "
            "pattern or --mode wordnet with it"
        )
    other = "wordnet" if mode == "pattern" else "pattern"
    if objects is not None and (other in objects.name or (mode == "wordnet" and mode not in objects.name)):
        said = f"its name says {other}" if other in objects.name else "the file does not say which it was"
        text = (
            f"note: the objects in {objects} must have been read from the reference captions in mode {mode}, and "
            f"{said}; with objects of the other mode the figures are of neither"
        )
        print(one_line(text), file=sys.stderr)
