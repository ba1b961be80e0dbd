"""`vlm-guard calibrate`: measure a model's profile and save it."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="builtin, smol, a folder or a Hugging Face id.")],
    data: Annotated[str, typer.Option(help="Pictures to measure with: scenes:SPLIT[:SEED] or coco:FOLDER.")] = (
        "scenes:common:11"
    ),
    count: Annotated[int, typer.Option(help="Number of pictures.", min=1)] = 8,
    only: Annotated[
        str | None,
        typer.Option(help="Measure just these: sinks, layers, zerotuning, iri, vti, with commas. (default: all)"),
    ] = None,
    prompt: Annotated[str, typer.Option(help="How a description is asked for.")] = (
        "Please describe this image in detail."
    ),
    grounding: Annotated[
        list[Path] | None,
        typer.Option(
            help="Take the weights of grounding scores from a run of eval --task grounding; may be repeated. Nothing "
            "else is measured then, unless --only says what."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write. (default: your profile folder)")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Spread the weights over devices: auto.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure what methods need to know about a model, and save it as a profile.

    Attention sinks (VAR), the layers that look at the image (layers=image), ZeroTuning's strength, IRI's recovery
    rates and VTI's directions; with --grounding, what turns grounding scores into probabilities, and below which of
    them repair acts. wrap and eval find the profile by themselves afterwards. What the profile already has and is not
    measured again stays.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from vlm_guard.builtin_model import is_shipped
    from vlm_guard.calibration.new_profile import new_profile
    from vlm_guard.calibration.run import calibrate, check_measurements, measurements
    from vlm_guard.eval.data.calibration_prompts import calibration_prompts
    from vlm_guard.eval.report.progress import MeasurementBars
    from vlm_guard.eval.run.models import load_model
    from vlm_guard.families.profiles import Fact, read_profile, short_value, user_profiles

    wanted = tuple(measurements()) if only is None else tuple(part.strip() for part in only.split(","))
    check_measurements(wanted)
    name = model.partition(":")[0] if is_shipped(model) else Path(model).name.lower()
    path = out or user_profiles() / f"{name}.json"
    earlier = read_profile(path) if path.is_file() else None
    facts: dict[str, Fact] = {}
    refusals: dict[str, str] = {}
    if grounding:
        from vlm_guard.eval.report.grounding_weights import weights_facts

        facts |= weights_facts(grounding, {} if earlier is None else earlier.facts)
    loaded = load_model(model, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code)
    messages = Console(stderr=True)
    if not grounding or only is not None:
        descriptions, questions = calibration_prompts(loaded.model, loaded.processor, data, count, prompt)
        with MeasurementBars(messages) as bars:
            found = calibrate(loaded.model, loaded.processor, descriptions, questions, only=wanted, progress=bars.show)
        facts |= found.facts
        refusals = found.refusals
    for refused, reason in refusals.items():
        messages.print(f"{refused}: not measured, {reason}", markup=False, highlight=False, soft_wrap=True)
    profile = new_profile(loaded.model, name, facts, earlier)
    profile.save(path)
    if as_json:
        print(json.dumps(asdict(profile) | {"path": str(path), "refusals": refusals}, indent=2))
        return
    for key, fact in facts.items():
        print(f"{key}: {short_value(fact.value)}  ({fact.note})")
    print(f"saved as {path}")
