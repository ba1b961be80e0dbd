"""The tables about the default method, gates and tuning, from the files of their runs."""

import json
import re
from collections.abc import Mapping
from typing import Any

from house import ROOT
from measured_table import TIMINGS, ratio_text

_RESULTS = ROOT / "eval" / "results"
_SPLITS = ("common", "broken")


def default_markdown() -> str:
    """The candidates for the default of `auto` on both splits: what they change against the plain model."""
    runs = {split: _entries(f"default_{split}.json") for split in _SPLITS}
    lines = [
        "| method | CHAIR_i, `common` | recall | CHAIR_i, `broken` | recall |",
        "|---|---|---|---|---|",
    ]
    for label in runs["common"]:
        if label != "none":
            cells = [_change(runs[split][label], metric) for split in _SPLITS for metric in ("chair_i", "recall")]
            lines.append(f"| `{label}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gates_markdown() -> str:
    """Methods without a gate and with it: what they change, and what they cost beside the plain model."""
    lines = ["| method | CHAIR_i | recall | words |", "|---|---|---|---|"]
    for label, entry in _entries("gates_common.json").items():
        if label != "none":
            cells = [_change(entry, "chair_i"), _change(entry, "recall")]
            lines.append(f"| `{label}` | {' | '.join(cells)} | {entry['estimates']['mean_words']['value']:.1f} |")
    return "\n".join([*lines, "", *_gate_costs()]) + "\n"


def _gate_costs() -> list[str]:
    """From `kernels/results/gates_*.json`."""
    lines = [
        "What it costs, in times of the plain model's: median over pictures, and where 60 % of them lie. Later tokens",
        "are without the longest of an answer: with a gate, the one at which the second branch reads its prompt.",
        "",
        "| model | gate | steps open | first token | later tokens | whole answer, per token | answers as without |",
        "|---" * 7 + "|",
    ]
    sources = []
    for path in sorted(TIMINGS.glob("gates_*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        for entry in measured["gates"]:
            ratios = [ratio_text(entry["ratios"][name]) for name in ("first_token", "later_token", "per_token")]
            gate = f"`{entry['gate']}`" if entry["gate"] else "none"
            shares = [f"{100 * entry[name]:.0f} %" for name in ("open_steps", "answers_as_always")]
            cells = [f"`{measured['model']}`, {measured['dtype']}", gate, shares[0], *ratios, shares[1]]
            lines.append(f"| {' | '.join(cells)} |")
        sources.append(
            f"`{measured['command']}` ({path.relative_to(ROOT)}): {measured['machine']['processor']}, "
            f"{measured['machine']['torch_threads']} threads."
        )
    return [*lines, "", *sources]


def tuning_markdown() -> str:
    """What `tune` chose on each seed, and what the annotations say of it, for each way to find mentions."""
    lines = [
        "| model | scenes | words | chosen | its true place | best by annotations | right | rank correlation |",
        "|---" * 8 + "|",
    ]
    for path in sorted(_RESULTS.glob("tune_seeds*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        words = re.search(r"--words (\w+)", content["command"])
        for run in content["runs"]:
            labels = run["labels"]
            rank = labels["true_rank"]
            cells = [
                f"`{content['model']}`",
                f"`{run['data']}`",
                words[1] if words else "",
                f"`{run['chosen']}`",
                "loses recall" if rank is None else f"{rank} of {labels['keeping_recall']}",
                f"`{labels['best']}`",
                "yes" if labels["right"] else "no",
                f"{labels['spearman_chair_i']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _entries(name: str) -> dict[str, Mapping[str, Any]]:
    content = json.loads((_RESULTS / name).read_text(encoding="utf-8"))
    return {entry["label"]: entry for entry in content["methods"]}


def _change(entry: Mapping[str, Any], metric: str) -> str:
    """The change in points, bold where its interval leaves out 0, with the interval."""
    change = entry["difference_to_baseline"][metric]
    value, low, high = (100 * change[name] for name in ("value", "low", "high"))
    text = f"**{value:+.1f}**" if low > 0 or high < 0 else f"{value:+.1f}"
    return f"{text} ({low:+.1f} to {high:+.1f})"
