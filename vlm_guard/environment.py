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


def install_line(extra: str) -> str:
    """The command that installs an extra of this package, from where this package comes.

    Args:
        extra: "demo", "plot", ...
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "constraints.txt").is_file():
        return f"pip install -c constraints.txt -e '.[{extra}]' (in the checkout's folder)"
    return f"pip install 'vlm-guard-hf[{extra}]'"


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
