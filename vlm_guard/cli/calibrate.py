"""`vlm-guard calibrate`: measure a model's profile and save it."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="builtin, a folder or a Hugging Face id.")],
    data: Annotated[str, typer.Option(help="Pictures to measure with: scenes:SPLIT[:SEED] or coco:FOLDER.")] = (
        "scenes:common:11"
    ),
    count: Annotated[int, typer.Option(help="Number of pictures.", min=1)] = 8,
    prompt: Annotated[str, typer.Option(help="What is asked about them.")] = "Please describe this image in detail.",
    out: Annotated[Path | None, typer.Option(help="File to write. [your profile folder]")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Spread the weights over devices: auto.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure what methods need to know about a model (attention sinks) and save it as a profile.

    wrap and eval find the profile by themselves afterwards.
    """
    import json
    from dataclasses import asdict

    from vlm_guard.architecture import inference_device
    from vlm_guard.calibration import calibrate_sinks, new_profile
    from vlm_guard.eval.datasets import open_dataset
    from vlm_guard.eval.generation import read_image
    from vlm_guard.eval.models import load_model
    from vlm_guard.eval.prompting import find_template
    from vlm_guard.profiles import user_profiles

    loaded = load_model(model, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code)
    pictures = list(open_dataset(data, count).images.values())[:count]
    template = find_template(loaded.processor)
    where = {"device": inference_device(loaded.model), "dtype": loaded.model.dtype}
    prompts = [template.encode(loaded.processor, [read_image(path)], [prompt]).to(**where) for path in pictures]
    facts = calibrate_sinks(loaded.model, prompts)
    name = "builtin" if model == "builtin" else Path(model).name.lower()
    profile = new_profile(loaded.model, name, facts)
    path = out or user_profiles() / f"{name}.json"
    profile.save(path)
    if as_json:
        print(json.dumps(asdict(profile) | {"path": str(path)}, indent=2))
        return
    for key, fact in facts.items():
        print(f"{key}: {fact.value}  ({fact.note})")
    print(f"saved as {path}")
