"""`vlm-guard pope-questions`: build POPE's questions for a set of images."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Argument(help="Folder for pope_random.json, pope_popular.json, ...")],
    coco: Annotated[Path | None, typer.Option(help="Folder in MSCOCO's format.")] = None,
    objects: Annotated[
        Path | None, typer.Option(help="Or JSON of image id to a list of names in first-seen order; .gz allowed.")
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="random, popular or adversarial; may be repeated. All three by default.")
    ] = None,
    images: Annotated[int, typer.Option(help="Number of images to draw; 0 for all with enough objects.")] = 500,
    per_image: Annotated[int, typer.Option(help="Questions per image and strategy, even.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the random choices.")] = 0,
    template: Annotated[str, typer.Option(help="original, or published (with the 'imange' typo).")] = "original",
    leading: Annotated[
        str | None, typer.Option(help="Also write leading variants: statement, tag, authority or denial.")
    ] = None,
    towards: Annotated[str, typer.Option(help="What they suggest: wrong, right, yes or no.")] = "wrong",
) -> None:
    """Build POPE's yes/no questions from the objects of images, with or without leading variants."""
    from vlm_guard.eval.tasks.pope.report import build_question_files

    for path, count in build_question_files(
        output,
        coco=coco,
        objects=objects,
        strategies=strategy,
        images=images,
        per_image=per_image,
        seed=seed,
        template=template,
        leading=leading,
        towards=towards,
    ):
        typer.echo(f"{path}: {count} questions")
