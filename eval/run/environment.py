"""What a number was measured with: package versions, hardware, the state of the source tree."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import vlm_guard
from vlm_guard.environment import processor_name, version_of

# Versions that can change an answer or a score; a run is not resumed with others.
DECISIVE_PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "nltk", "textblob")
SCORING_PACKAGES = ("pillow", "nltk", "textblob")
_OTHER_PACKAGES = ("accelerate", "numpy", "pycocotools", "safetensors", "triton")


def decisive_versions() -> dict[str, str]:
    """Versions of the packages that produce answers and scores, and of this one."""
    return {"vlm_guard": vlm_guard.__version__} | _versions(DECISIVE_PACKAGES)


def scoring_versions() -> dict[str, str]:
    """Versions of what makes scores of answers that came from elsewhere."""
    return {"vlm_guard": vlm_guard.__version__} | _versions(SCORING_PACKAGES)


def all_versions() -> dict[str, str]:
    """Python's version and those of all packages that take part."""
    return {"python": platform.python_version()} | decisive_versions() | _versions(_OTHER_PACKAGES)


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {name: version_of(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, threads of torch, memory, and GPUs."""
    import torch  # a run that a server answers does without

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": cores,
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from and whether files differ from it; None outside a checkout."""
    folder = Path(vlm_guard.__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed_files": len(changed)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
