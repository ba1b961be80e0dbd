"""What the methods say about themselves, without importing them: lists, citations and first checks need no torch.

`index.json` beside this file is made from the classes by `docs/tables/readme_tables.py`. An entry counts only while the
method's files are those that it was made from; of any other method the class itself is asked.
"""

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from vlm_guard.families.profiles import settings_by_model
from vlm_guard.method.registry import method_class, method_files
from vlm_guard.method.table import describe_class
from vlm_guard.untrusted.json_files import read_json

INDEX_FILE = Path(__file__).with_name("index.json")


def _digest(name: str) -> str:
    """sha256 of the code of a built-in method: its file, or all files of its folder."""
    path = method_files()[name]
    files = sorted(path.parent.glob("*.py")) if path.name == "method.py" else [path]
    content = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return hashlib.sha256(content.encode()).hexdigest()


def index_text() -> str:
    """The content of `index.json` as it should be; imports every built-in method."""
    entries = {}
    for name in method_files():
        described = describe_class(method_class(name))
        del described["settings"]  # these stand in profiles, which a user may add to
        entries[name] = {"code": _digest(name), **described}
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return read_json(INDEX_FILE)


def described_method(name: str) -> dict[str, Any]:
    """A method as `describe_class` gives it, from the index where that is current.

    Raises:
        ValueError: unknown name; the message suggests the nearest ones.
    """
    entry = _entries().get(name)
    if entry is None or name not in method_files() or entry["code"] != _digest(name):
        return describe_class(method_class(name))
    described = {key: value for key, value in entry.items() if key != "code"}
    return described | {
        "settings": [{"option": option} | asdict(setting) for option, setting in settings_by_model(name)]
    }
