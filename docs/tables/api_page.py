"""The page of the Python interface, made from signatures and docstrings."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

# What the page shows: a heading, and the public names under it by the module they are imported from.
CHAPTERS: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    ("Guarding a model", {"vlm_guard": ("wrap", "Guard", "builtin")}),
    ("Writing a method", {"vlm_guard.method": ()}),
    (
        "What a method hands to attention",
        {
            "vlm_guard.kernels.attention_edit": ("AttentionEdit", "BiasFactors"),
            "vlm_guard.kernels.edited_attention": ("edited_attention",),
        },
    ),
    ("Adding a model family", {"vlm_guard.families.family": ("ArchitectureEntry", "register_architecture")}),
    (
        "Running and reading an evaluation",
        {
            "vlm_guard.eval.run.settings": ("RunSettings",),
            "vlm_guard.eval.run.runner": ("evaluate",),
            "vlm_guard.eval.run.results": ("RunResults", "read_results"),
            "vlm_guard.eval.run.records": ("read_records",),
            "vlm_guard.eval.report.compare": ("compare_runs",),
            "vlm_guard.eval.scenes": ("load_scenes", "write_scenes"),
        },
    ),
)
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
_ENTRY = re.compile(r"^(\S[^:]*): (.*)$")


def api_markdown() -> str:
    """Every chapter with its names; an empty tuple of names stands for all that the module offers."""
    lines: list[str] = []
    for title, homes in CHAPTERS:
        lines += [f"## {title}", ""]
        for home, names in homes.items():
            module = import_module(home)
            for name in names or module.__all__:
                lines += _entry(home, name, getattr(module, name))
    return "\n".join(lines)


def _entry(home: str, name: str, thing: Any) -> Iterator[str]:
    """Heading, import, signature and docstring of one name; of a class also its public functions."""
    yield from (f"### `{name}`", "", f"`from {home} import {name}`", "")
    if not callable(thing):
        yield from (f"`{name} = {thing}`".replace("typing.", ""), "")
        return
    yield from _described(name, thing)
    if not inspect.isclass(thing):
        return
    for own, member in vars(thing).items():
        if own.startswith("_") or own == "model_config":
            continue
        if isinstance(member, property) and member.__doc__:
            yield from (f"**`{name}.{own}`** {inspect.cleandoc(member.__doc__)}".replace("``", "`"), "")
        elif inspect.isfunction(member) and member.__doc__:
            yield from _described(f"{name}.{own}", member)


def _described(title: str, thing: Any) -> Iterator[str]:
    yield from ("```python", f"{title}{_signature(thing)}", "```", "")
    if dataclasses.is_dataclass(thing) and (thing.__doc__ or "").startswith(f"{thing.__name__}("):
        return  # Python's own docstring of a dataclass repeats the signature
    yield from (*docstring_markdown(inspect.cleandoc(thing.__doc__ or "")), "")


def _signature(thing: Any) -> str:
    """The arguments, one a line where they are many; types as they are written."""
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return ""
    parts = [
        str(parameter.replace(annotation=parameter.empty, default=parameter.empty)) + _type_and_default(parameter)
        for parameter in signature.parameters.values()
    ]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = signature.return_annotation
    end = "" if returned is signature.empty or inspect.isclass(thing) else f" -> {_type(returned)}"
    line = f"({', '.join(parts)}){end}"
    if len(line) < 90:
        return line
    return "(\n" + "".join(f"    {part},\n" for part in parts) + ")" + end


def _type_and_default(parameter: inspect.Parameter) -> str:
    text = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    # Defaults that are objects print as "<...>", some with an address in memory.
    default = repr(parameter.default)
    default = "..." if default.startswith("<") else default
    return f"{text} = {default}" if text else f"={default}"


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text).replace("NoneType", "None")


def docstring_markdown(text: str) -> list[str]:
    """A docstring's lines as Markdown: its sections become lists."""
    lines: list[str] = []
    in_section = False
    for line in text.replace("``", "`").splitlines():
        if _SECTION.match(line):
            in_section = True
            lines += [f"*{line.removesuffix(':')}*", ""]
        elif in_section and line.startswith("    "):
            entry = _ENTRY.match(line.strip()) if "*Returns*" not in lines[-2:] else None
            starts = not line.startswith("     ")
            if starts and entry:
                lines.append(f"- `{entry[1]}`: {entry[2]}")
            else:
                lines.append(f"  {line.strip()}" if not starts or lines[-1] else line.strip())
        else:
            in_section = in_section and not line.strip()
            lines.append(line)
    return lines
