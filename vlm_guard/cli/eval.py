"""`vlm-guard eval`: score methods on a data set, side by side."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(help="Folder of the run: results.json and every answer.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; flags go on top.")] = None,
    model: Annotated[str | None, typer.Option(help="builtin, a folder or a Hugging Face id. [builtin]")] = None,
    data: Annotated[str | None, typer.Option(help="scenes:SPLIT[:SEED] or coco:FOLDER. [scenes:common]")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="none, var, var+vcd, pai:gain=0.4+var, my_file.py, ...; repeat it, the first is the baseline."
        ),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Option of a method: var.move_fraction=0.5; may be repeated.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="chair, pope or both with a comma. [chair,pope]")] = None,
    count: Annotated[int | None, typer.Option(help="Number of images.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many of them.")] = None,
    image_list: Annotated[Path | None, typer.Option(help="File with the image ids to use, in order.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a COCO folder: val2014, val2017, ...")] = None,
    chair_mode: Annotated[str | None, typer.Option(help="CHAIR text pipeline: pattern or wordnet.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Instruction for captions.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Instead of the chat template: text with {image} and {prompt}.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Token limit of captions. [512]")] = None,
    suffix: Annotated[
        str | None, typer.Option(help="After POPE's questions: none, one_word, short_phrase. [none]")
    ] = None,
    parser: Annotated[str | None, typer.Option(help="POPE: strict, pope, opera, vcd. [strict]")] = None,
    pope_per_image: Annotated[
        int | None, typer.Option(help="POPE's questions for an image and strategy, even. [6]")
    ] = None,
    pope_max_new_tokens: Annotated[int | None, typer.Option(help="Token limit of POPE's answers. [10]")] = None,
    questions: Annotated[
        list[Path] | None, typer.Option(help="Published POPE question files instead of built questions.")
    ] = None,
    sample: Annotated[bool | None, typer.Option("--sample/--greedy", help="Draw tokens at random. [greedy]")] = None,
    temperature: Annotated[float | None, typer.Option(help="With --sample. [1.0]")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample. [1.0]")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam search. [1]")] = None,
    seed: Annotated[int | None, typer.Option(help="For sampling and POPE's random questions. [0]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts answered together. [16]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [auto]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ... [auto]")] = None,
    device_map: Annotated[str | None, typer.Option(help="Spread the weights over devices: auto.")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="reference, torch or triton. [fastest]")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a Hugging Face id.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Stop at an unreadable image.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--no-resume", help="Go on with the records in --out. [resume]")
    ] = None,
    resamples: Annotated[int | None, typer.Option(help="Bootstrap resamples. [2000]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show one prompt and the predicted time; keep nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Score methods on a data set: CHAIR and POPE with paired intervals, speed and memory.

    Run it again with the same --out to go on with a run that was stopped. To share the work, start the same options by
    "accelerate launch -m vlm_guard.eval" (GPUs, machines) or "torchrun --nproc-per-node 2 -m vlm_guard.eval" (CPU).
    """
    from vlm_guard.eval.run.command import run_command
    from vlm_guard.eval.run.settings import read_settings
    from vlm_guard.method.method_text import parse_options

    flags = {
        "model": model,
        "data": data,
        "methods": method or None,
        "options": parse_options(options) if options else None,
        "tasks": [name.strip() for name in task.split(",")] if task else None,
        "count": count,
        "limit": limit,
        "image_list": image_list,
        "split": split,
        "chair_mode": chair_mode,
        "prompt": prompt,
        "template": template,
        "max_new_tokens": max_new_tokens,
        "pope.suffix": suffix,
        "pope.parser": parser,
        "pope.per_image": pope_per_image,
        "pope.max_new_tokens": pope_max_new_tokens,
        "pope.questions": questions or None,
        "decoding.do_sample": sample,
        "decoding.temperature": temperature,
        "decoding.top_p": top_p,
        "decoding.num_beams": num_beams,
        "seed": seed,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "attention_backend": attention_backend,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "strict": strict,
        "resume": resume,
        "resamples": resamples,
    }
    run_command(read_settings(config, flags), out, dry_run=dry_run, as_json=as_json)
