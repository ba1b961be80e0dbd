"""What the source of a method from outside of this package was, so that answers of an earlier state of it are known."""

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

_OWN = "vlm_guard."


def method_source(cls: type) -> dict[str, str] | None:
    """The file a method's class stands in, and a hash of its content; None for the methods of this package.

    Classes from other files that it is made from count as well. The hash is of the files as they were when this was
    first asked, which is when they were loaded: what is changed later does not run in this process.

    Args:
        cls: the class of the method.

    Returns:
        `file` (its name without folders) and `sha256`; None also where there is no file, as in a notebook.
    """
    known: Any = cls
    return _source_of(known)


@cache
def _source_of(cls: Any) -> dict[str, str] | None:
    if cls.__module__.startswith(_OWN):
        return None
    modules = [base.__module__ for base in cls.__mro__ if base is not object and not base.__module__.startswith(_OWN)]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in dict.fromkeys(modules)]
    found = [Path(file) for file in files if isinstance(file, str) and Path(file).is_file()]
    if not found:
        return None
    digest = hashlib.sha256()
    for path in found:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"file": found[0].name, "sha256": digest.hexdigest()}
