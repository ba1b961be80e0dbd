"""What this machine offers: versions, the processor and the devices, as `doctor` prints and results record them."""

import platform
from importlib import metadata
from pathlib import Path

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


def devices() -> dict[str, str]:
    """The processor and the accelerators that torch sees."""
    import torch

    found = {"cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return found
