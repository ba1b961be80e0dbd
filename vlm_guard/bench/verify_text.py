"""What `vlm-guard verify` found, as one block of text for a report: plain characters, at most 80 columns."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from vlm_guard.bench.paired_timing import comes_at_once

WIDTH = 80
_SHOWN_FAILURES = 3
_LONGEST_REASON = 300
_MARKS = {"passed": "ok", "failed": "FAILED", "refused": "-", "absent": "-"}


def verify_text(found: Mapping[str, Any]) -> str:
    """The block.

    Args:
        found: what `vlm_guard.bench.verify.verify` returns, with "created", "machine" and "model" added.
    """
    return "\n".join([*_head(found), *_kernels(found), *_methods(found), *_speed(found)])


def _wrapped(text: str, indent: int = 0, hanging: int = 2) -> list[str]:
    before = " " * indent
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=before, subsequent_indent=before + " " * hanging, break_on_hyphens=False
    )
    return lines or [before]


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    machine, model = found["machine"], found["model"]
    yield f"vlm-guard verify: {found['state'].upper()} in {found['seconds']:.0f} s, {found['created']}"
    if _not_reached(found) or found["speed"]["not_reached"]:
        yield from _wrapped(
            f"Not all was reached with --minutes {found['seconds_given'] / 60:g}: give more, or name the methods "
            "that matter with --method. Other work on this machine (see load) makes everything slower.",
            2,
            0,
        )
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    yield from _wrapped(f"versions: {versions}, python {machine['python']}")
    load = machine.get("load_average_1min")
    busy = "" if load is None else f", load {load:.1f}"
    yield from _wrapped(
        f"processor: {machine['processor']}, {machine['logical_processors']} logical processors, "
        f"{machine['torch_threads']} threads used{busy}"
    )
    if "gpu" in machine:
        yield from _wrapped(f"GPU: {machine['gpu']}, CUDA {machine['cuda']}")
    yield from _wrapped(
        f"model: {model['name']} ({model['class']}, {model['parameters'] / 1e6:.0f} M parameters), "
        f"{model['dtype']} on {model['device']}"
    )


def _kernels(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "Kernels against the reference in float64"
    for entry in found["kernels"]:
        where = f"{_MARKS[entry['state']]:<12}{entry['backend']} on {entry['device']}"
        if entry["state"] == "absent":
            yield from _wrapped(f"{where}: {entry['reason']}", 2, 12)
            continue
        yield from _wrapped(
            f"{where}: {entry['checked']} of {entry['cases']} cases, {len(entry['failures'])} wrong, largest error "
            f"{100 * entry['worst_part_of_budget']:.0f} % of what rounding allows",
            2,
            12,
        )
        for failure in entry["failures"][:_SHOWN_FAILURES]:
            yield from _wrapped(_shortened(failure), 14)


def _methods(found: Mapping[str, Any]) -> Iterator[str]:
    rounding = found["rounding"]
    yield ""
    yield from _wrapped(
        "Methods: neutral parameters must leave the logits alone, and the plain answer must come back bit for bit "
        f"after removal. Rounding allows {rounding['allowed']:.1e} here"
        + (f"; two equal calls differ by {rounding['repeated']:.1e}" if rounding["repeated"] else "")
        + "."
    )
    yield f"  {'':<12}{'method':<13}{'neutral':>9}  {'removed':<9} default moves a logit by"
    for check in found["methods"]:
        if check["state"] == "not reached":
            continue
        if check["identity"] is None:
            said = f": {_shortened(check['reason'])}" if check["reason"] else ""
            yield from _wrapped(f"{_MARKS[check['state']]:<12}{check['method']}{said}", 2, 12)
            continue
        removed = "yes" if check["removed"] else "NO"
        effect = f"{check['effect']:.2g}" if check["effect"] else "0 (no change)"
        line = f"{_MARKS[check['state']]:<12}{check['method']:<13}{check['identity']:>9.1e}  {removed:<9} {effect}"
        yield f"  {line}"
        if check["state"] == "failed":
            yield from _wrapped(_shortened(check["reason"]), 14)
        if check["idle"]:
            yield from _wrapped(f"no change because: {_shortened(check['idle'])}", 14)
    if _not_reached(found):
        yield from _wrapped(f"not reached in the time (--minutes): {', '.join(_not_reached(found))}", 2)


def _not_reached(found: Mapping[str, Any]) -> list[str]:
    return [check["method"] for check in found["methods"] if check["state"] == "not reached"]


def _speed(found: Mapping[str, Any]) -> Iterator[str]:
    speed = found["speed"]
    yield ""
    if not speed["entries"]:
        yield "Speed: not measured"
        return
    plain = speed["plain"]
    yield from _wrapped(
        f"Speed: ratio to plain calls beside it, median (20th to 80th percentile) of {speed['rounds']} pairs of "
        f"{speed['new_tokens']} tokens. Plain: {1e3 * plain['prefill']['median_s']:.0f} ms to the first token, "
        f"{1e3 * plain['decode']['median_s']:.1f} ms per later one."
    )
    rows = [("", "first token", "later token")]
    rows += [
        (
            entry["method"],
            _ratio(entry["answer" if comes_at_once(entry) else "prefill"]["ratio_to_unguarded"]),
            "-" if comes_at_once(entry) else _ratio(entry["decode"]["ratio_to_unguarded"]),
        )
        for entry in speed["entries"]
    ]
    name, first = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    for row in rows:
        yield f"  {row[0]:<{name}}{row[1]:<{first}}{row[2]}"
    if any(row[2] == "-" for row in rows):
        yield from _wrapped("-: the answer comes in one piece, so the whole answer stands in front", 2)
    if speed["not_reached"]:
        yield from _wrapped(f"not reached in the time (--minutes): {', '.join(speed['not_reached'])}", 2)


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['p20']:.2f} to {ratio['p80']:.2f})"


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST_REASON else words[: _LONGEST_REASON - 3] + "..."
