"""`vlm-guard sweep`: which strength of each method suits a model."""

from pathlib import Path
from typing import Annotated

import typer

from vlm_guard.cli._weights import PackWeights


def command(
    out: Annotated[Path, typer.Option(help="Folder of the run: sweep.json and every answer.")],
    model: Annotated[str, typer.Option(help="builtin, smol, a folder or a Hugging Face id.")] = "builtin",
    data: Annotated[
        str, typer.Option(help="Pictures to choose with, others than those to judge with: scenes:SPLIT:SEED, ...")
    ] = "scenes:common:31",
    count: Annotated[int, typer.Option(help="Number of images.", min=1)] = 100,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods to try; repeat it. (default: all the model takes)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts answered together.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    pack_weights: PackWeights = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sweep as JSON.")] = False,
) -> None:
    """Try each method's main strength at half, once and twice its default, by captions.

    A contrast is tried with stricter plausibility too, each with every strength.
    Prints CHAIR_i and recall of each, their changes with 95 % intervals, and the setting to use: the lowest CHAIR_i
    that keeps the recall, where the interval of the change leaves out 0 and there are at least 50 pictures. A method
    without such a setting does not surely help this model on these pictures.
    """
    import json
    import sys

    from vlm_guard.method.index import refuse_settings

    refuse_settings(method or (), "sweep tries settings of its own")
    from rich.console import Console

    from vlm_guard.eval.report.progress import ProgressBar
    from vlm_guard.eval.report.sweep_table import sweep_tables
    from vlm_guard.eval.run.settings import read_settings
    from vlm_guard.eval.run.strength_sweep import methods_to_sweep, sweep
    from vlm_guard.untrusted.printed_text import one_line

    method = method or methods_to_sweep(model, device)
    given = {"data": data, "count": count, "batch_size": batch_size, "device": device, "pack_weights": pack_weights}
    settings = read_settings(None, {"model": model, **given})
    progress = ProgressBar(Console(stderr=True))
    try:
        report = sweep(settings, method, out, progress=progress)
    except KeyboardInterrupt:
        print(progress.interrupted_text(out), file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(report, indent=2))
        return
    console = Console()
    title = one_line(f"{model} on {report['data']}, {report['images']} images, in percent")
    console.print(title, style="bold", markup=False, highlight=False)
    for table in sweep_tables(report, console.width):
        console.print(table)
    console.print("\nBelow each change its 95 % interval, over pictures.", style="dim", highlight=False)
    if report["images"] < report["images_needed"]:
        console.print(
            f"{report['images']} pictures are too few to choose by; give at least --count {report['images_needed']}"
        )
    console.print(f"\nsweep: {out / 'sweep.json'}", soft_wrap=True, markup=False, highlight=False)
