"""`vlm-guard generate`: one picture, one prompt, one or several methods."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = "Please describe this image in detail.",
    model: Annotated[str, typer.Option(help="builtin, smol, a folder or a Hugging Face id.")] = "builtin",
    method: Annotated[
        list[str] | None,
        typer.Option(help="none, var, pai:gain=0.4+var, my_file.py, ...; repeat it to see several answers. [var]"),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Option of a method: var.move_fraction=0.5; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Token limit of the answer.", min=1)] = 256,
    sample: Annotated[bool, typer.Option("--sample/--greedy", help="Draw tokens at random.")] = False,
    seed: Annotated[int, typer.Option(help="For sampling and for methods that draw noise.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Spread the weights over devices: auto.")] = None,
    attention_backend: Annotated[str | None, typer.Option(help="reference, torch or triton. [fastest]")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Ask a model about a picture, guarded; give --method several times to compare answers."""
    import json
    import sys
    from dataclasses import asdict

    if not image.is_file():
        raise FileNotFoundError(f"there is no picture {image}")
    from vlm_guard.eval.run.settings import parse_methods
    from vlm_guard.method.method_text import parse_options
    from vlm_guard.untrusted.picture_reader import read_picture
    from vlm_guard.untrusted.printed_text import printable, printable_json

    picture = read_picture(image)
    specs = parse_methods(method or ["var"], parse_options(options or []))
    from vlm_guard.eval.run.ask import ask
    from vlm_guard.eval.run.generation import Decoding
    from vlm_guard.eval.run.models import load_model
    from vlm_guard.eval.scenes.recognise import note_about

    loaded = load_model(model, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code)
    answers = ask(
        loaded,
        picture,
        prompt,
        specs,
        decoding=Decoding(do_sample=sample),
        max_new_tokens=max_new_tokens,
        seed=seed,
        attention_backend=attention_backend,
    )
    if note := note_about(model, picture):
        # Not among the answers, which may be piped on.
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(printable_json(json.dumps([asdict(answer) for answer in answers], indent=2, ensure_ascii=False)))
        return
    for answer in answers:
        if len(answers) > 1:
            print(f"[{printable(answer.method)}, {answer.tokens} tokens, {answer.seconds:.2f} s]")
        print(printable(answer.text))
