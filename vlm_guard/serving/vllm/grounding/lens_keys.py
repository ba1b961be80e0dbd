"""Under which key the hidden states of a prompt are kept. Keys are made in the front end; nobody else may name one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

LENS = "vlm_guard_lens"
"""The argument of a request that holds the key."""

GRIDS = "vlm_guard_grids"
"""The argument into which the scheduler writes the grids of the prompt's pictures."""

_ISSUED: set[str] = set()


@contextmanager
def lens_key() -> Iterator[str]:
    """A key that requests of this process may name inside, and never again."""
    key = uuid4().hex
    _ISSUED.add(key)
    try:
        yield key
    finally:
        _ISSUED.discard(key)


def is_issued(key: object) -> bool:
    """Whether requests may name it now."""
    return isinstance(key, str) and key in _ISSUED


def key_of(extra_args: Mapping[str, object] | None) -> str | None:
    """The key that a request names; None for most."""
    key = (extra_args or {}).get(LENS)
    return key if isinstance(key, str) else None
