"""`vlm-guard bench kernels|generate|grounding`: what a guard costs on this machine."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    what: Annotated[
        Literal["kernels", "generate", "grounding"],
        typer.Argument(help="kernels: attention alone; generate: whole calls; grounding: scores of mentions."),
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
            help="generate: builtin, smol or a random model's shape such as llava-0.3b or llava-1.5-7b. "
            "kernels: a model shape such as LLaVA-1.5-7B; may be repeated."
        ),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="generate: a method, or all; may be repeated. [var]")] = None,
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
        bool, typer.Option("--pack-weights", help="generate, on a CPU: lay linear layers out for oneDNN.")
    ] = False,
    prompt_tokens: Annotated[int, typer.Option(help="generate: text tokens of a random model's prompt.", min=1)] = 40,
    new_tokens: Annotated[int, typer.Option(help="generate: tokens of every call.", min=2)] = 32,
    cache: Annotated[Literal["dynamic", "static"], typer.Option(help="generate: kind of key-value cache.")] = "dynamic",
    compiled: Annotated[bool, typer.Option("--compile", help="generate: compile the decode step.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Timed calls of each. [kernels 50, generate 5]", min=3)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Time the edited attention, guarded against unguarded generation, or grounding scores, in interleaved calls."""
    import json
    import sys

    if pack_weights and what != "generate":
        raise ValueError(f"--pack-weights is for bench generate; bench {what} times weights as they lie in memory")
    if what == "generate":
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
