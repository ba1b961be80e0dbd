"""What the methods say about themselves, without importing them: lists, citations and first checks need no torch.

`index.json` beside this file is made from the classes by `docs/tables/readme_tables.py`. An entry counts only while the
method's files are those that it was made from; of any other method the class itself is asked.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from vlm_guard.families.profiles import settings_by_model
from vlm_guard.method.method_text import MethodPart, is_outside, parse_method_text
from vlm_guard.method.model_choice import AUTO
from vlm_guard.method.registry import method_class, method_files, method_names
from vlm_guard.method.table import describe_class
from vlm_guard.untrusted.json_files import read_json
from vlm_guard.untrusted.printed_text import shown

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


def refuse_texts(texts: Iterable[str]) -> None:
    """Refuse lines of methods ("pai:gain=0.4+var") for what shows without importing any.

    Raises:
        ValueError: a line cannot be read, or `refuse_part` refuses one of its methods. FileNotFoundError: as there.
    """
    for text in texts:
        for part in parse_method_text(text, [*method_names(), AUTO]):
            refuse_part(part)


def refuse_settings(names: Iterable[str], why: str) -> None:
    """Refuse what is no method's bare name.

    Args:
        names: as they were given.
        why: a bare name is wanted.

    Raises:
        ValueError: one has settings, or is unknown.
    """
    for name in names:
        if not name.isidentifier():
            raise ValueError(f"--method is {name!r}; {why}: give a name, no settings")
        described_method(name)


def refuse_part(part: MethodPart) -> None:
    """Refuse one method of a line for what shows without importing it: its name, its options' names and values.

    Raises:
        ValueError: it is ruled out. FileNotFoundError: it is to come from a file that is not there.
    """
    name = part.reference
    if is_outside(name):
        file = name[: name.index(".py") + 3] if ".py" in name else ""
        if file and not Path(file).expanduser().is_file():
            raise FileNotFoundError(f"there is no file {file}, which the method {name!r} is to come from")
        return
    if name == AUTO:
        return
    described_method(name)
    for option, value in part.options.items():
        if "." not in option:
            refuse_option(name, option, value)


def refuse_option(name: str, option: str, value: Any) -> None:
    """Refuse what a method's description rules out: an unknown option, a word or number that is not allowed.

    What only the method's code knows (layers, gates) is not looked at.

    Args:
        name: of a method.
        option: the option's name, without the method's.
        value: as it is written on the command line, or already in its type.

    Raises:
        ValueError: it is ruled out; the message says what is allowed.
    """
    options = {item["name"]: item for item in described_method(name)["options"]}
    if option == "gate" and option not in options:
        raise ValueError(
            f"{name} takes no gate: it does nothing at single steps of an answer, or decides over many at once; leave "
            f"out gate={shown(value)}"
        )
    if option not in options:
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} has no option {option!r}.{hint} Its options: {', '.join(options) or 'none'}")
    found = options[option]
    if found["choices"] and isinstance(value, str) and value not in found["choices"]:
        raise ValueError(f"{name}: option {option} is {shown(value)}; allowed: {', '.join(found['choices'])}")
    if not found["range"] or not found["numeric"] or str(value).lower() in ("none", "null"):
        return
    kind = "a number" if found["numeric"] == "real" else "a whole number"
    try:
        number = float(value) if found["numeric"] == "real" else int(value)
    except (ValueError, TypeError):
        raise ValueError(f"{name}: option {option} must be {kind}, given {shown(value)}") from None
    low, high = found["range"]
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name}: option {option} is {shown(number)}; allowed: {low} to {high}")
