"""`vlm-guard inspect`: how a model is shaped and what can be applied to it."""

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    model: Annotated[str, typer.Argument(help="builtin, smol, a folder or a Hugging Face id.")],
    attention: Annotated[
        bool, typer.Option("--attention", help="Also measure where attention goes, on a few pictures, with plots.")
    ] = False,
    heads: Annotated[
        bool, typer.Option("--heads", help="Also measure what each head does (rest, look, fetch words), and --sinks.")
    ] = False,
    sinks: Annotated[
        bool, typer.Option("--sinks", help="Also measure which tokens are attention sinks and which MLP makes them so.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Write the lists of --heads into the profile, for heads=retrieval.")
    ] = False,
    data: Annotated[str, typer.Option(help="Pictures for these measurements: scenes:SPLIT[:SEED] or coco:FOLDER.")] = (
        "scenes:broken:12"
    ),
    count: Annotated[int, typer.Option(help="Number of pictures for them.", min=1)] = 32,
    out: Annotated[Path | None, typer.Option(help="Folder for the plots and numbers of --attention.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Show a model's layers, heads and visual token ids, its profile, and which methods it takes.

    A folder without a processor will do: methods that need one are then listed as such.
    """
    import json

    from vlm_guard.calibration.inspection import inspect_model
    from vlm_guard.eval.run.models import load_model

    if save and not heads:
        raise ValueError("--save writes what --heads measures; give both")
    measures = attention or heads or sinks
    loaded = load_model(model, device=device, trust_remote_code=trust_remote_code, needs_processor=measures)
    report = inspect_model(loaded.model, loaded.processor)
    if loaded.no_processor:
        report["model"]["processor"] = (
            f"left out, because it cannot be loaded: {loaded.no_processor} Without it the methods that need one are "
            "not ready, and --attention, --heads and --sinks do not work"
        )
    if attention:
        from vlm_guard.eval.attention.facts import measure_attention

        report["attention"] = measure_attention(loaded.model, loaded.processor, data, count, out)
    if heads:
        report["heads"] = _heads(loaded, model, data, count, save)
        report["sinks"] = {"data": data, **report["heads"].pop("sinks")}
    elif sinks:
        from vlm_guard.eval.attention.sinks import sink_facts

        report["sinks"] = {"data": data, **sink_facts(loaded.model, loaded.processor, _pictures(data, count))}
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlm_guard.untrusted.printed_text import one_line

    console = Console()
    for section in ("model", "profile"):
        table = Table(box=None, show_header=False, title=section, title_justify="left", title_style="bold")
        table.add_column(style="dim")
        table.add_column()
        for key, value in report[section].items():
            table.add_row(key, Text(one_line(str(value))))
        console.print(table)
    table = Table(box=None, title="methods", title_justify="left", title_style="bold", header_style="dim")
    for column in ("method", "layers", "verdict"):
        table.add_column(column)
    for row in report["methods"]:
        table.add_row(row["method"], row["layers"], Text(one_line(row["verdict"])))
    console.print(table)
    if attention:
        console.print_json(json.dumps(report["attention"]))
    if heads:
        from vlm_guard.eval.report.head_table import print_heads

        print_heads(console, report["heads"])
    if "sinks" in report:
        from vlm_guard.eval.report.sink_table import print_sinks

        print_sinks(console, report["sinks"])


def _heads(loaded: Any, model: str, data: str, count: int, save: bool) -> dict[str, Any]:
    """What the heads do, measured on pictures; the lists go into the profile where that is asked for."""
    from vlm_guard.calibration.new_profile import new_profile
    from vlm_guard.eval.attention.heads import head_facts, head_list_facts
    from vlm_guard.families.profiles import read_profile, user_profiles

    facts = {"data": data, **head_facts(loaded.model, loaded.processor, _pictures(data, count))}
    if save:
        name = "builtin" if model == "builtin" else Path(model).name.lower()
        path = user_profiles() / f"{name}.json"
        earlier = read_profile(path) if path.is_file() else None
        new_profile(loaded.model, name, head_list_facts(facts), earlier).save(path)
        facts["profile"] = str(path)
    return facts


def _pictures(data: str, count: int) -> list[Any]:
    """The first pictures of a data set."""
    from vlm_guard.eval.data.datasets import open_dataset
    from vlm_guard.untrusted.picture_reader import read_picture

    return [read_picture(path) for path in list(open_dataset(data, count).images.values())[:count]]
