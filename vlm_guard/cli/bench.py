"""`vlm-guard bench kernels|generate|grounding|gates`: what a guard costs on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from PIL import Image


def command(
    what: Annotated[
        Literal["kernels", "generate", "grounding", "gates"],
        typer.Argument(
            help="kernels: attention alone; generate: whole calls; grounding: scores of mentions; gates: a method at "
            "unsure steps only."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, ...; generate: also several with commas. "
            "auto: bfloat16; on the CPU float32, for generate float32 and bfloat16."
        ),
    ] = "auto",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="builtin, smol or, for generate, a random model's shape such as llava-0.3b or llava-1.5-7b. "
            "kernels: a model shape such as LLaVA-1.5-7B; may be repeated."
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="generate: a method, or all (default: var); may be repeated. gates: one method (default: vcd)."
        ),
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option(help="gates: entropy>0.6, max_p<0.7, rival>=0.1; may be repeated.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="gates: folder with pictures to describe.")] = None,
    data: Annotated[
        str | None, typer.Option(help="gates: instead, scenes:SPLIT[:SEED] or coco:FOLDER. (default: scenes:common)")
    ] = None,
    count: Annotated[int, typer.Option(help="gates: pictures that count; one more warms up.", min=2)] = 30,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="generate: option of a method: var.move_fraction=0.5; may be repeated."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; kernels: may be repeated.")] = None,
    keys: Annotated[list[int] | None, typer.Option(help="kernels: number of keys; may be repeated.")] = None,
    provider: Annotated[
        list[str] | None, typer.Option(help="kernels: sdpa, flex, eager, torch, triton; may be repeated.")
    ] = None,
    attention_backend: Annotated[str | None, typer.Option(help="generate: reference, torch or triton.")] = None,
    pack_weights: Annotated[
        bool, typer.Option("--pack-weights", help="generate and gates, on a CPU: lay linear layers out for oneDNN.")
    ] = False,
    prompt_tokens: Annotated[int, typer.Option(help="generate: text tokens of a random model's prompt.", min=1)] = 40,
    new_tokens: Annotated[int, typer.Option(help="Tokens of every call; gates: at most.", min=2)] = 32,
    cache: Annotated[Literal["dynamic", "static"], typer.Option(help="generate: kind of key-value cache.")] = "dynamic",
    compiled: Annotated[bool, typer.Option("--compile", help="generate: compile the decode step.")] = False,
    rounds: Annotated[
        int | None, typer.Option(help="Timed calls of each. (default: kernels 50, generate 5)", min=3)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Time edited attention, guarded generation, grounding scores or gates beside the plain model, in turn."""
    import json
    import shlex
    import sys

    if pack_weights and what not in ("generate", "gates"):
        raise ValueError(
            f"--pack-weights is for bench generate and gates; bench {what} times weights as they lie in memory"
        )
    if what != "gates" and (gate or images is not None or data is not None):
        raise ValueError(f"--gate, --images and --data are for bench gates, not for bench {what}")
    if what in ("generate", "gates"):
        from vlm_guard.method.index import refuse_texts

        refuse_texts(name for name in method or () if name != "all")
    import torch

    from vlm_guard.kernels.benchmark.measure import write_json

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    def report(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    kind = None if dtype == "auto" else dtype
    if what == "kernels":
        from vlm_guard.kernels.benchmark.run import run_benchmark

        result = run_benchmark(
            models=model,
            keys=keys,
            batches=batch,
            providers=provider,
            rounds=rounds or 50,
            device=device,
            dtype=kind,
            report=report,
        )
        for note in result["notes"]:
            report(note)
    elif what == "grounding":
        from vlm_guard.bench.grounding_cost import benchmark_grounding

        if len(model or []) > 1 or len(batch or []) > 1:
            raise ValueError("bench grounding takes one --model and one --batch")
        result = benchmark_grounding(
            model=(model or ["builtin"])[0],
            batch=(batch or [1])[0],
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            rounds=rounds or 5,
            device=device,
            dtype=kind,
            report=report,
        )
    elif what == "gates":
        from vlm_guard.bench.gate_cost import benchmark_gates

        if (batch or [1]) != [1]:
            raise ValueError("bench gates describes one picture at a time; leave out --batch")
        data = data or (None if images else "scenes:common")
        result = benchmark_gates(
            pictures=_pictures(images, data, count + 1),
            method=_only(method, "--method") or "vcd",
            gates=gate or [],
            model=_only(model, "--model") or "builtin",
            device=device,
            dtype=kind,
            pack_weights=pack_weights,
            new_tokens=new_tokens,
            report=report,
        )
        shown = ["--images", images.name] if images else ["--data", str(data)]
        result["command"] += f" {shlex.join(shown)}"
    else:
        from vlm_guard.bench.generate import benchmark_generate
        from vlm_guard.method.method_text import parse_options

        if len(model or []) > 1 or len(batch or []) > 1:
            raise ValueError("bench generate takes one --model and one --batch")
        result = benchmark_generate(
            model=(model or ["builtin"])[0],
            methods=method or ["var"],
            options=parse_options(options or []),
            attention_backend=attention_backend,
            pack_weights=pack_weights,
            batch=(batch or [1])[0],
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            cache=cache,
            compiled=compiled,
            rounds=rounds or 5,
            device=device,
            dtype=kind,
            report=report,
        )
    if out is not None:
        write_json(out, result)
        report(f"written to {out}")
    if as_json:
        print(json.dumps(result, indent=1))


def _only(given: list[str] | None, option: str) -> str | None:
    """The one value of an option that may be repeated elsewhere.

    Raises:
        ValueError: there are several.
    """
    if len(given or []) > 1:
        raise ValueError(f"bench gates takes one {option}, given {len(given or [])}")
    return given[0] if given else None


def _pictures(images: Path | None, data: str | None, count: int) -> "list[Image.Image]":
    """The first pictures of a folder or a data set.

    Raises:
        ValueError: both are given, or there are fewer.
    """
    from vlm_guard.eval.tuning.pictures import chosen_pictures
    from vlm_guard.untrusted.picture_reader import read_picture

    found = chosen_pictures(images, data, count)
    if len(found.files) < count:
        raise ValueError(
            f"{found.name} has {len(found.files)} pictures, and {count} are needed, one of them to warm up: give more "
            "or a smaller --count"
        )
    return [read_picture(path) for path in list(found.files.values())[:count]]
