"""Methods as rows: for the command line, the README's table, the demo and the tests."""

from dataclasses import fields
from typing import Any

from vlm_guard.method.base import Method
from vlm_guard.method.registry import method_class, method_names


def describe_class(cls: type[Method]) -> dict[str, Any]:
    """Name, summary, paper, stations, needs, whether its decode steps compile, and options of a method, JSON-able."""
    return {
        "name": cls.name,
        "title": cls.title,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "paper": cls.paper,
        "stations": list(cls.stations),
        "needs": list(cls.needs),
        "compiles": cls.compiles,
        "options": [_describe_option(item) for item in fields(cls)],
    }


def _describe_option(item: Any) -> dict[str, Any]:
    details = item.metadata
    if details.get("choices"):
        allowed = " | ".join(details["choices"])
    elif details.get("range"):
        allowed = f"{details['range'][0]:g} to {details['range'][1]:g}"
    else:
        allowed = {bool: "true | false"}.get(type(item.default), "text")
    return {
        "name": item.name,
        "default": item.default,
        "allowed": allowed,
        "neutral": details.get("neutral", ""),
        "help": details.get("help", ""),
        "paper": details.get("paper", ""),
    }


def methods_markdown() -> str:
    """The README's method table."""
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
