"""`vlm-guard doctor`: what is installed, what will be used, and what is missing, also for a model."""

from typing import Annotated, Any

import typer


def command(
    model: Annotated[
        str | None, typer.Argument(help="Also say what this model's processor lacks: a folder or a Hugging Face id.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a Hugging Face id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Report versions, devices, attention backends, profiles and optional parts.

    With a model, also what its processor needs and lacks here. Only its configuration is read, no weights.
    """
    import json

    report = examine()
    if model is not None:
        from vlm_guard.builtin_model import is_shipped, shipped_folder
        from vlm_guard.families.processor_needs import processor_needs

        name = str(shipped_folder(model)) if is_shipped(model) else model
        report[model] = processor_needs(name, revision).describe()
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for section, entries in report.items():
        table = Table(box=None, show_header=False, title=section, title_justify="left", title_style="bold")
        table.add_column(style="dim")
        table.add_column()
        for key, value in entries.items():
            table.add_row(key, str(value))
        console.print(table)


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
    return found or {"found": "none"}


def examine() -> dict[str, dict[str, Any]]:
    """Everything `vlm-guard doctor` prints, by section."""
    from vlm_guard.environment import devices, dtype_advice, library_versions
    from vlm_guard.families.profiles import all_profiles, user_profiles
    from vlm_guard.method.registry import method_names
    from vlm_guard.smol_model.language_model import INSTALL_LINE, missing_parts

    return {
        "versions": library_versions(),
        "devices": devices(),
        "type of weights": {"recommended": dtype_advice()},
        "attention backend": attention_backends(),
        "vlm_guard": {
            "methods": ", ".join(method_names()),
            "profiles": ", ".join(profile.name for profile in all_profiles()) or "none",
            "your profiles go to": str(user_profiles()),
            "model smol": f"lacks {', '.join(lacking)}: {INSTALL_LINE}" if (lacking := missing_parts()) else "ready",
        },
        "problems": problems(),
    }
