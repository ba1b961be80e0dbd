"""The "which method?" table of docs/methods.md: what a method needs, costs, did here, and what its paper says."""

import tomllib

from house import ROOT
from measured_digest import TIMED_ON, differences, measured_costs, scenes, verdict
from measured_table import EVALUATIONS
from vlm_guard.method.registry import method_class, method_names

CLAIMS = ROOT / "docs" / "tables" / "claims.toml"
# By group, the page that describes it.
PAGES = {
    "attention": "methods/attention.md",
    "hidden states": "methods/hidden-states.md",
    "the picture": "methods/picture.md",
    "contrast": "contrast.md",
    "read-outs": "methods/read-outs.md",
}
# VISTA's late layers come second to its turned hidden states, PAI's contrast to its raised scores; OPERA searches.
_OTHERWISE = {"vista": "hidden states", "pai": "attention", "opera": "read-outs", "var": "attention"}


def group_of(name: str) -> str:
    """The group of a method: what it changes, or where the logits come from that it combines."""
    cls = method_class(name)
    if name in _OTHERWISE:
        return _OTHERWISE[name]
    if cls.overrides("contrast_branch"):
        return "contrast"
    if any(cls.overrides(hook) for hook in ("combine_read_out", "combine_layers", "edit_logits")):
        return "read-outs"
    if "inputs" in cls.stations or cls.stations == ("vision",):
        return "the picture"
    return "hidden states" if cls.overrides("edit_hidden") else "attention"


def which_markdown() -> str:
    """One row per method."""
    claims = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    where = f"bfloat16, {TIMED_ON['bfloat16']}"
    costs = {name: f"{cost} ({where})" for name, cost in measured_costs(dtype="bfloat16").items()} | measured_costs()
    found = {split: _measured(split) for split in ("common", "broken")}
    lines = [
        "| method | group | needs | prompt, token | on `common` | on `broken` | what its paper says |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in method_names():
        if name == "none":
            continue
        group = group_of(name)
        words = [found[split].get(name, "") for split in ("common", "broken")]
        said = claims.get(name, {})
        claim = f"{said['claim']} ({said['from']})" if said.get("claim") else ""
        cells = [f"`{name}`", f"[{group}]({PAGES[group]})", ", ".join(method_class(name).needs) or "-"]
        lines.append(f"| {' | '.join([*cells, costs.get(name, ''), *words, claim])} |")
    return "\n".join(lines) + "\n"


def _measured(split: str) -> dict[str, str]:
    """By method, what its defaults did on one split, in words; with the number of scenes where it is not the usual."""
    first = [path.stem.removesuffix(f"_{split}") for path in sorted(EVALUATIONS.glob(f"fewer_*_{split}.json"))]
    found = {}
    for kind in (*first, "builtin"):
        note = "" if kind == "builtin" else f" ({scenes(kind, split)} scenes)"
        for label, difference in differences(kind, split).items():
            found[label] = verdict(difference["chair_i"], difference["recall"]) + note
    return found
