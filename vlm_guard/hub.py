"""Can the Hugging Face hub be asked? One short request, where the hub's own client would try dozens of times.

Where it cannot, models are taken from the local cache, and what is not there is refused in one line.
"""

from functools import cache

PATIENCE = 5.0
"""Seconds to wait for an answer of any kind."""

ADVICE = (
    "download it where there is a connection and give its folder (--model FOLDER); for a model in the cache, "
    "HF_HUB_OFFLINE=1 asks the hub nothing"
)


@cache
def hub_answers() -> bool:
    """Whether the hub answers; asked once per process. False where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # the library below has its own errors, and changes between releases
        return False
    return True


def why_unreachable() -> str:
    """Why a model can be had neither from the hub nor from the cache; behind a colon."""
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return f"it is no folder, {why}, and the local cache has not all of it"


def unreachable() -> str:
    """The same, and what to do."""
    return f"{why_unreachable()}; {ADVICE}"
