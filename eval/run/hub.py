"""The Hugging Face hub where it cannot be reached: found out at once, and said once instead of at every file."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOGGER = "huggingface_hub.utils._http"
_SECONDS = 10.0
WHAT_TO_DO = (
    "give --model FOLDER with the checkpoint, or fetch it where there is a network and set HF_HUB_OFFLINE=1, so that "
    "the copy in the cache is used and nothing is asked of the hub"
)


def is_offline() -> bool:
    """Whether the user has forbidden to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def refuse_unreachable(name: str, revision: str | None = None) -> None:
    """Refuse a model that is neither a folder nor in the cache, where the hub cannot be asked for it.

    Args:
        name: a folder or an id of the hub.
        revision: its branch, tag or commit.

    Raises:
        FileNotFoundError: so it is; the message says what to do. A hub that answers, whatever it says, is left to the
            loading itself.
    """
    if Path(name).is_dir():
        return
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
    except ValueError:  # no id of the hub: loading says so
        return
    if is_offline():
        raise FileNotFoundError(
            f"the model {name} is not in the cache of this machine, and HF_HUB_OFFLINE=1 forbids to ask the hub; give "
            "--model FOLDER with the checkpoint, or fetch it first where there is a network"
        )
    try:
        get_session().get(f"{constants.ENDPOINT}/api/models/{name}", timeout=_SECONDS)
    except Exception as error:  # of whatever the library speaks to the network with
        raise FileNotFoundError(
            f"the model {name} is not in the cache of this machine, and {constants.ENDPOINT} cannot be reached "
            f"({error}); {WHAT_TO_DO}"
        ) from error


class _Once(logging.Filter):
    """Lets one warning through, in our words; every further file waits and is warned about in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is printed."""
        if record.levelno > logging.WARNING:
            return True
        if self._said:
            return False
        self._said = True
        record.msg, record.args = (
            f"the hub does not answer ({record.getMessage()}) and is asked again; {WHAT_TO_DO}",
            (),
        )
        return True


@contextmanager
def retries_said_once() -> Iterator[None]:
    """Inside, the hub's library warns of requests that it repeats only once."""
    logger, once = logging.getLogger(_LOGGER), _Once()
    logger.addFilter(once)
    try:
        yield
    finally:
        logger.removeFilter(once)
