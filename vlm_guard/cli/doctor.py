"""`vlm-guard doctor`: what is installed, what will be used, and what is missing, also for a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

NO_PROBLEMS = {"found": "none"}


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Also say what this model's processor lacks: a folder, a Hugging Face id, or, without a network, a "
            "model type such as qwen2_5_vl."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a Hugging Face id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Report versions, devices, attention backends, profiles and optional parts.

    With a model, also what its processor needs and lacks here. Only its configuration is read, no weights.

    Exit code 0: no problem; 1: a problem is listed, or the model's processor lacks something; 2: wrong use. Absent
    GPUs and optional parts are no problems.
    """
    import json

    report = examine()
    if model is not None:
        report[model] = examine_model(model, revision)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_sections(report)
    if report["problems"] != NO_PROBLEMS or (model is not None and "to install" in report[model]):
        raise typer.Exit(1)


def _print_sections(report: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for section, entries in report.items():
        table = Table(box=None, show_header=False, title=section, title_justify="left", title_style="bold")
        table.add_column(style="dim")
        table.add_column()
        for key, value in entries.items():
            table.add_row(key, Text(str(value)))
        console.print(table)


def examine_model(model: str, revision: str | None = None) -> dict[str, str]:
    """What its processor needs and lacks, and whether models of its type are tested.

    Args:
        model: a model that comes with the package, a folder, a Hugging Face id or a model type of `vlm-guard models`.
        revision: branch, tag or commit of a Hugging Face id.

    Raises:
        FileNotFoundError: no such folder. ValueError: the configuration cannot be read, or it is a name like none.
    """
    import difflib

    from vlm_guard.builtin_model import is_shipped, shipped_folder
    from vlm_guard.families.processor_needs import processor_needs, type_needs
    from vlm_guard.families.table import model_rows

    rows = {row["model_type"]: row for row in model_rows()}
    is_name = "/" not in model and not is_shipped(model) and not Path(model).is_dir()
    if is_name and model in rows:
        needs = type_needs(model)
    else:
        near = difflib.get_close_matches(model.lower(), rows, n=1) if is_name else []
        if near:
            raise ValueError(
                f"{model!r} is no folder and no model type. Did you mean {near[0]!r}? 'vlm-guard models' lists the "
                "types; a Hugging Face id is OWNER/NAME"
            )
        needs = processor_needs(str(shipped_folder(model)) if is_shipped(model) else model, revision)
    row = rows.get(needs.model_type)
    status = "no row of 'vlm-guard models'; wrap checks such a model itself" if row is None else row["status"]
    found = needs.describe() | {"models of this type": status}
    return found | ({"about them": row["note"]} if row is not None and row["note"] else {})


def attention_backends() -> dict[str, str]:
    """Which backend of the edited attention serves each device, and why another does not."""
    import torch

    from vlm_guard.kernels.edited_attention import default_backend

    report = {"cpu": f"{default_backend(torch.device('cpu'))} (default)"}
    if torch.cuda.is_available():
        report["cuda"] = f"{default_backend(torch.device('cuda'))} (default)"
    else:
        report["cuda"] = "no CUDA device, so the Triton kernel is not used"
    return report


def packed_weights() -> str:
    """What `--pack-weights` gains on this processor, measured now with layers of 4,096 inputs and outputs."""
    from vlm_guard.kernels.benchmark.linear import speed_up
    from vlm_guard.kernels.packed_linear import packable_types

    types = packable_types()
    if not types:
        return "not available: this torch was built without oneDNN"
    found = {str(dtype).removeprefix("torch."): [speed_up(dtype, rows) for rows in (1, 2)] for dtype in types}
    said = "; ".join(f"{name} {one:.1f}x (one row), {two:.1f}x (two)" for name, (one, two) in found.items())
    gains = [name for name, (one, two) in found.items() if min(one, two) > 1]
    advice = f"worth it in {' and '.join(gains)}" if gains else "not worth it here"
    return f"--pack-weights, {advice}: speed of linear layers, just measured: {said} (docs/performance.md)"


def problems() -> dict[str, str]:
    """What is wrong with this installation, one sentence each."""
    from vlm_guard.environment import version_of
    from vlm_guard.families.processor_needs import torchvision_problem

    found = {}
    if version_of("vlm-guard") is not None:
        found["vlm-guard"] = (
            "the distribution vlm-guard is an unrelated project whose package is called vlm_guard, too, so one hides "
            "the other: pip uninstall vlm-guard, then install vlm-guard-hf again"
        )
    if problem := torchvision_problem():
        found["torchvision"] = problem
    return found or NO_PROBLEMS


def examine() -> dict[str, dict[str, Any]]:
    """Everything `vlm-guard doctor` prints, by section."""
    from vlm_guard.environment import devices, dtype_advice, library_versions
    from vlm_guard.families.profiles import all_profiles, user_profiles
    from vlm_guard.method.registry import method_names
    from vlm_guard.smol_model.language_model import INSTALL_LINE, missing_parts

    return {
        "versions": library_versions(),
        "devices": devices(),
        "weights": {"recommended": dtype_advice(), "packed": packed_weights()},
        "attention backend": attention_backends(),
        "vlm_guard": {
            "methods": ", ".join(method_names()),
            "profiles": ", ".join(profile.name for profile in all_profiles()) or "none",
            "your profiles go to": str(user_profiles()),
            "model smol": f"lacks {', '.join(lacking)}: {INSTALL_LINE}" if (lacking := missing_parts()) else "ready",
        },
        "problems": problems(),
    }
