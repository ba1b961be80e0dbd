"""Methods as rows: for the command line, the tables of docs/methods.md, the demo and the tests."""

from dataclasses import asdict, fields
from typing import Any

from vlm_guard.families.profiles import settings_by_model
from vlm_guard.method.base import Method
from vlm_guard.method.hooks import HOOKS, offered_options
from vlm_guard.method.option_types import type_words
from vlm_guard.method.registry import method_class, method_names


def describe_class(cls: type[Method]) -> dict[str, Any]:
    """A method as a JSON-able row.

    Beside its name, summary, paper, stations, needs and whether its decode steps compile: its options, and the settings
    that profiles have for single models, which `wrap` takes for options that are not given.
    """
    return {
        "name": cls.name,
        "title": cls.title,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "paper": cls.paper,
        "stations": list(cls.stations),
        "needs": list(cls.needs),
        "compiles": cls.compiles,
        "options": [_describe_option(cls, item) for item in offered_options(cls)],
        "settings": [{"option": name} | asdict(setting) for name, setting in settings_by_model(cls.name)],
    }


def _describe_option(cls: type[Method], item: Any) -> dict[str, Any]:
    details = item.metadata
    if details.get("choices"):
        allowed = " | ".join(details["choices"])
    elif details.get("range"):
        allowed = f"{details['range'][0]:g} to {details['range'][1]:g}"
    else:
        allowed = {bool: "true | false"}.get(type(item.default), "text")
    return {
        "name": item.name,
        "type": type_words(cls, item),
        "default": item.default,
        "allowed": allowed,
        "range": list(details["range"]) if details.get("range") else None,
        "choices": list(details["choices"]) if details.get("choices") else None,
        "numeric": {bool: "", int: "whole", float: "real"}.get(type(item.default), ""),
        "neutral": details.get("neutral", ""),
        "published": details.get("published", ""),
        "help": details.get("help", ""),
        "paper": details.get("paper", ""),
    }


def hooks_markdown() -> str:
    """The table of the hooks that a method may define, with the first line of what each says of itself."""
    lines = ["| hook | station | every step | what it does |", "|---|---|---|---|"]
    for name, hook in HOOKS.items():
        said = (getattr(Method, name).__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `{name}` | {hook.station or '-'} | {'yes' if hook.per_step else 'no'} | {said} |")
    return "\n".join(lines) + "\n"


def settings_markdown() -> str:
    """The table of settings that shipped profiles have for single models."""
    lines = ["| method | profile | option | default | value | source | note |", "|---|---|---|---|---|---|---|"]
    for name in method_names():
        defaults = {item.name: item.default for item in fields(method_class(name))}
        lines += [
            f"| `{name}` | {setting.profile} | `{option}` | {defaults[option]} | {setting.value} | {setting.source} "
            f"| {setting.note} |"
            for option, setting in settings_by_model(name, shipped_only=True)
        ]
    return "\n".join(lines) + "\n"


def methods_markdown() -> str:
    """The table of methods in docs/methods.md."""
    lines = ["| method | acts on | needs | compiles | what it does | paper |", "|---|---|---|---|---|---|"]
    for name in method_names():
        row = describe_class(method_class(name))
        cells = (
            f"`{row['name']}`",
            ", ".join(row["stations"]) or "-",
            ", ".join(row["needs"]) or "-",
            "yes" if row["compiles"] else "no",
        )
        lines.append(f"| {' | '.join(cells)} | {row['summary']} | {row['paper']} |")
    return "\n".join(lines) + "\n"
