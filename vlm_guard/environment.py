"""What this machine offers: versions, devices and attention backends, as `doctor` prints and results record them."""

import platform
from importlib import metadata
from typing import Any

LIBRARIES = ("torch", "transformers", "accelerate", "triton", "pycocotools", "pillow", "numpy", "gradio", "matplotlib")


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that matter; "not installed" where one is missing."""
    versions = {"python": platform.python_version(), "vlm-guard-hf": _version("vlm-guard-hf")}
    return versions | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def devices() -> dict[str, str]:
    """The processor and the accelerators that torch sees."""
    import torch

    found = {"cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"}
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


def examine() -> dict[str, dict[str, Any]]:
    """Everything `vlm-guard doctor` prints, by section."""
    from vlm_guard.method import method_names
    from vlm_guard.profiles import all_profiles, user_profiles

    return {
        "versions": library_versions(),
        "devices": devices(),
        "attention backend": attention_backends(),
        "vlm_guard": {
            "methods": ", ".join(method_names()),
            "profiles": ", ".join(profile.name for profile in all_profiles()) or "none",
            "your profiles go to": str(user_profiles()),
        },
    }
