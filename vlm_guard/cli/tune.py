"""`vlm-guard tune`: which method and strength suits a model, without labels."""

from pathlib import Path
from typing import Annotated

import typer

from vlm_guard.cli._weights import PackWeights


def command(
    model: Annotated[str, typer.Argument(help="builtin, a folder or a Hugging Face id.")],
    images: Annotated[Path | None, typer.Option(help="Folder with pictures of the kind the model will see.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Instead, annotated pictures (scenes:SPLIT[:SEED], coco:FOLDER), to see how true it is."),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of pictures.", min=1)] = 100,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method or setting to try: pai, pai:gain=0.4; repeat it. (default: all the model takes)"),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            help="Which things count: nouns, coco (its 80 objects), or a file with a word a line. (default: nouns)"
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="How a description is asked for.")] = (
        "Please describe this image in detail."
    ),
    max_new_tokens: Annotated[int, typer.Option(help="Token limit of a caption.", min=1)] = 256,
    batch_size: Annotated[int, typer.Option(help="Pictures described together.", min=1)] = 8,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Write the choice into the profile.")] = True,
    out: Annotated[Path | None, typer.Option(help="Profile to write. (default: your profile folder)")] = None,
    report: Annotated[Path | None, typer.Option(help="File for all numbers, as JSON.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Spread the weights over devices: auto.")] = None,
    pack_weights: PackWeights = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Choose a method and its strength for a model by your own pictures, which need no annotations.

    Each setting describes the pictures; the plain model is asked about every thing that was named. The setting that
    by two votes lowers the share of absent things most without losing present ones is what wrap(model, processor) and
    --method auto use from then on; where there is none, the plain model is. At least 50 pictures.
    """
    import json

    from vlm_guard.method.index import refuse_texts

    refuse_texts(method or ())
    from rich.console import Console

    from vlm_guard.builtin_model import is_shipped
    from vlm_guard.eval.report.progress import MeasurementBars
    from vlm_guard.eval.run.models import load_model
    from vlm_guard.eval.run.statistics import LEAST_PICTURES
    from vlm_guard.eval.tasks.grounding.finders import COCO, NOUNS, finder_named
    from vlm_guard.eval.tuning.pictures import chosen_pictures
    from vlm_guard.eval.tuning.report import print_tuning
    from vlm_guard.eval.tuning.run import profile_with_choice, tune
    from vlm_guard.families.profiles import read_profile, user_profiles
    from vlm_guard.whole_files import write_atomically

    # The models that ship with the package know MSCOCO's 80 objects and have no answer about others.
    finder = finder_named(words or (COCO if is_shipped(model) else NOUNS))
    pictures = chosen_pictures(images, data, count)
    loaded = load_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        pack_weights=pack_weights,
    )
    with MeasurementBars(Console(stderr=True)) as bars:
        tuning = tune(
            loaded,
            pictures,
            methods=method,
            find=finder,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=bars.show,
        )
    saved = None
    if save and len(pictures.files) >= LEAST_PICTURES:
        name = "builtin" if model == "builtin" else Path(model).name.lower()
        saved = out or user_profiles() / f"{name}.json"
        earlier = read_profile(saved) if saved.is_file() else None
        profile_with_choice(loaded, name, tuning, earlier).save(saved)
    found = tuning.report | {"model": model, "profile": None if saved is None else str(saved)}
    if report is not None:
        write_atomically(report, json.dumps(found, indent=1) + "\n")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print_tuning(Console(), found)
