"""What this machine offers: versions, devices and attention backends, as `doctor` prints and results record them."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "triton",
    "pycocotools",
    "pillow",
    "numpy",
    "gradio",
    "matplotlib",
)


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that matter; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    return found | {name: version_of(name) or "not installed" for name in ("vlm-guard-hf", *LIBRARIES)}


def version_of(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor's model as the system names it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def bfloat16_instructions() -> list[str]:
    """Instructions of this processor that compute with bfloat16, as Linux names them; empty where it tells none."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return []
    for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86 and ARM
            return [flag for flag in ("avx512_bf16", "amx_bf16", "bf16") if flag in flags.split()]
    return []


def dtype_advice() -> str:
    """Which type of weights to use on the CPU."""
    found = bfloat16_instructions()
    if not found:
        return "float32 on the CPU: this processor names no bfloat16 instructions, so bfloat16 would be slow"
    return (
        f"bfloat16 on the CPU (--dtype bfloat16): this processor has {', '.join(found)}. Half the memory, and for "
        "models of some size less time; the small built-in model is no faster (docs/performance.md)"
    )


def devices() -> dict[str, str]:
    """The processor and the accelerators that torch sees."""
    import torch

    found = {"cpu": f"{processor_name()}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return found


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
    from vlm_guard.families.profiles import all_profiles, user_profiles
    from vlm_guard.method.registry import method_names

    return {
        "versions": library_versions(),
        "devices": devices(),
        "type of weights": {"recommended": dtype_advice()},
        "attention backend": attention_backends(),
        "vlm_guard": {
            "methods": ", ".join(method_names()),
            "profiles": ", ".join(profile.name for profile in all_profiles()) or "none",
            "your profiles go to": str(user_profiles()),
        },
        "problems": problems(),
    }
