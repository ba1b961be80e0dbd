"""`vlm-guard verify`: does everything hold on this machine, with this model?"""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="builtin, smol, a folder or a Hugging Face id.")] = "builtin",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Name of a method to check; may be repeated. (default: all that fit the model)"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures to this file.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Time for everything after the model is loaded; a busy machine needs more.")
    ] = 3.0,
    tokens: Annotated[int, typer.Option(help="New tokens of every call.", min=2, max=512)] = 12,
    rounds: Annotated[int, typer.Option(help="Timed pairs of every method.", min=1, max=100)] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
) -> None:
    """Check kernels, methods and speed here, in three minutes, and print a block of text to paste into a report.

    What people use most comes first: the model's choice (auto), var, vhr, carve, paint, lqcd, then the contrasts of
    logits, then all others. What the time did not reach is listed.

    Exit code 0: all passed; 1: something failed, or the time did not suffice for everything; 2: wrong use.
    """
    import math
    import sys
    from datetime import UTC, datetime

    if not math.isfinite(minutes) or not 0 < minutes <= 600:
        raise ValueError(f"--minutes is {minutes}; allowed: above 0, up to 600")
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise ValueError(f"--json {json_file}: it must be a file in a folder that exists")
    from vlm_guard.method.index import refuse_settings

    refuse_settings(method or (), "verify checks methods as they are")
    import torch

    from vlm_guard.bench.verify import verify
    from vlm_guard.bench.verify_text import verify_text
    from vlm_guard.eval.run.models import load_model
    from vlm_guard.eval.run.prompting import find_template
    from vlm_guard.kernels.benchmark.measure import describe_machine, write_json
    from vlm_guard.untrusted.printed_text import printable

    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    where = loaded.model.device
    if model == "builtin" and where.type == "cpu":
        # Its matrices are so small that several threads wait for each other longer than they compute.
        torch.set_num_threads(1)
    template = find_template(loaded.processor)

    def make_inputs(rows: int, seed: int) -> dict:
        from vlm_guard.bench.random_prompts import noise_pictures

        prompts = ["Please describe this image in detail."] * rows
        inputs = template.encode(loaded.processor, noise_pictures(rows, 336, seed), prompts)
        return dict(inputs.to(where, dtype=loaded.model.dtype))

    def report(line: str) -> None:
        print(f"... {line}", file=sys.stderr, flush=True)

    found = verify(
        loaded.model,
        loaded.processor,
        make_inputs,
        methods=method,
        seconds=60 * minutes,
        tokens=tokens,
        rounds=rounds,
        report=report,
    )
    about = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(where)}
    found = {"state": found["state"], **about, "model": loaded.identity, **found}
    if json_file is not None:
        write_json(json_file, found)
        report(f"written to {json_file}")
    print(printable(verify_text(found)))
    if found["state"] != "passed":
        raise typer.Exit(1)
