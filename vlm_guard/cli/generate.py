"""`vlm-guard generate`: one picture, one prompt, one or several methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_guard.cli._weights import PackWeights

if TYPE_CHECKING:
    from vlm_guard.grounding.settings import Grounding


def command(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = "Please describe this image in detail.",
    model: Annotated[str, typer.Option(help="builtin, smol, a folder or a Hugging Face id.")] = "builtin",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="none, auto, pai:gain=0.4+var, my_file.py, ...; repeat it to see several answers. (default: auto)"
        ),
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
    attention_backend: Annotated[
        str | None, typer.Option(help="reference, torch or triton. (default: the fastest)")
    ] = None,
    pack_weights: PackWeights = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
    grounding: Annotated[
        bool, typer.Option("--grounding", help="Score everything an answer mentions: is it in the picture?")
    ] = False,
    words: Annotated[
        str | None,
        typer.Option(
            help="What counts as a mention: nouns, coco (its 80 objects), or a file of a word a line. (default: nouns)"
        ),
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option(help="Take doubtful mentions out: drop, or rewrite what cannot be cut; with --grounding."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Ask a model about a picture, guarded; give --method several times to compare answers."""
    import json
    import sys

    if image.is_dir():
        raise ValueError(f"{image}: this is a folder; vlm-guard caption {image} --out FILE describes its pictures")
    if not image.is_file():
        order = f"; {prompt} is a file: give the picture first, then the prompt" if _is_file(prompt) else ""
        raise FileNotFoundError(f"there is no picture {image}{order}")
    from vlm_guard.builtin_model import is_shipped
    from vlm_guard.eval.run.settings import parse_methods
    from vlm_guard.method.method_text import parse_options
    from vlm_guard.untrusted.picture_reader import read_picture
    from vlm_guard.untrusted.printed_text import one_line, printable, printable_json

    picture = read_picture(image)
    # The built-in model knows MSCOCO's 80 objects and has no answer about others.
    wanted = _grounding(words or ("coco" if is_shipped(model) else "nouns"), repair) if grounding else None
    if repair is not None and wanted is None:
        raise ValueError("--repair takes out what grounding finds doubtful; give --grounding with it")
    specs = parse_methods(method or ["auto"], parse_options(options or []))
    from vlm_guard.eval.run.ask import ask
    from vlm_guard.eval.run.generation import Decoding
    from vlm_guard.eval.run.models import load_model
    from vlm_guard.eval.scenes.recognise import SCORES_SAY_NOTHING, note_about

    loaded = load_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        pack_weights=pack_weights,
    )
    answers = ask(
        loaded,
        picture,
        prompt,
        specs,
        decoding=Decoding(do_sample=sample),
        max_new_tokens=max_new_tokens,
        seed=seed,
        attention_backend=attention_backend,
        grounding=wanted,
    )
    if note := note_about(model, picture):
        # Not among the answers, which may be piped on.
        print(f"note: {note}", file=sys.stderr)
    for answer in answers:
        if answer.unchanged:
            print(one_line(f"note: {answer.method} changed nothing here: {answer.unchanged}"), file=sys.stderr)
    if as_json:
        shown = [answer.to_dict(*picture.size, scores_apply=not note) for answer in answers]
        print(printable_json(json.dumps(shown, indent=2, ensure_ascii=False)))
        return
    for answer in answers:
        if len(answers) > 1:
            print(f"[{printable(answer.method)}, {answer.tokens} tokens, {answer.seconds:.2f} s]")
        if answer.mentions is None:
            print(printable(answer.text))
            continue
        from rich.console import Console

        from vlm_guard.eval.report.mentions import print_mentions

        caution = SCORES_SAY_NOTHING if note else ""
        print_mentions(Console(), answer.text, answer.mentions, picture.size, answer.repaired, caution)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def _grounding(words: str, repair: str | None) -> "Grounding":
    """How mentions are found and scored.

    Raises:
        ValueError: a repair that does not exist, or a file without words.
        FileNotFoundError: there is no such file of words.
    """
    from vlm_guard.eval.tasks.grounding.finders import finder_named
    from vlm_guard.grounding.settings import REPAIRS, Grounding

    chosen = next((name for name in REPAIRS if name == repair), None)
    if repair is not None and chosen is None:
        raise ValueError(f"--repair is {repair!r}; allowed: {', '.join(REPAIRS)}")
    return Grounding(find=finder_named(words), repair=chosen)
