"""The reader of YAML that users bring: plain values only, no aliases, every key once."""

import re
from pathlib import Path
from typing import Any

import yaml

from vlm_guard.untrusted.printed_text import one_line, shown

MAX_BYTES = 2**20
"""Largest file; settings take a few hundred bytes."""


class _PlainLoader(yaml.SafeLoader):
    """Values without aliases: a dozen lines of them can stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not allowed here; write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        made = super().construct_mapping(node, deep=deep)
        if len(made) < len(node.value):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {shown(key)} stands twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return made


# YAML 1.1, which PyYAML reads, takes 1e-3 for text; everybody else takes it for a number.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_yaml_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML, too large, uses aliases, names a key twice, or holds no mapping from text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no settings file {path}")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; settings are a few lines")
    try:
        content = yaml.load(data.decode("utf-8-sig"), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid YAML: {_reason(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings such as 'model: builtin', one a line")
    if strange := [key for key in content if not isinstance(key, str)]:
        raise ValueError(f"{path}: the setting {shown(strange[0])} has a name that is no text")
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return one_line(f"line {error.problem_mark.line + 1}: {error.problem or error.context}", 300)
    if "integer string conversion" in str(error):
        return "it holds a number of thousands of digits"
    return one_line(str(error), 300)
