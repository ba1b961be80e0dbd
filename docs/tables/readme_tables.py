"""The tables of README.md, CONTRIBUTING.md and the pages in docs/, made from code, docstrings and results.

`python docs/tables/readme_tables.py` rewrites them all in place, and the index of the methods in `vlm_guard/method`, or
only the pages that are named; a test checks that they are current.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from choice_tables import default_markdown, gates_markdown, tuning_markdown
from measured_smol import behaviour_markdown, premises_markdown
from which_method import which_markdown

from api_page import api_markdown
from code_map import code_map_markdown, rooms_markdown
from generate_features import features_markdown
from house import ROOT
from measured_digest import digest_markdown, digest_smol_markdown, helps_markdown
from measured_grounding import grounding_markdown
from measured_serving import serving_markdown
from measured_table import (
    linear_markdown,
    measured_markdown,
    measured_smol_markdown,
    packed_markdown,
    timings_markdown,
)
from vlm_guard.eval.run.protocols import protocols_markdown
from vlm_guard.eval.tasks.shared.table import tasks_markdown
from vlm_guard.families.table import models_markdown, models_summary
from vlm_guard.method.index import INDEX_FILE, index_text
from vlm_guard.method.table import hooks_markdown, methods_markdown, settings_markdown

SECTIONS: dict[str, Callable[[], str]] = {
    "which": which_markdown,
    "methods": methods_markdown,
    "settings": settings_markdown,
    "hooks": hooks_markdown,
    "families": models_summary,
    "models": models_markdown,
    "tasks": tasks_markdown,
    "protocols": protocols_markdown,
    "features": features_markdown,
    "digest": digest_markdown,
    "digest_smol": digest_smol_markdown,
    "measured": measured_markdown,
    "measured_smol": measured_smol_markdown,
    "smol_behaviour": behaviour_markdown,
    "smol_premises": premises_markdown,
    "timings": timings_markdown,
    "packed": packed_markdown,
    "linear": linear_markdown,
    "helps": helps_markdown,
    "defaults": default_markdown,
    "gates": gates_markdown,
    "tuning": tuning_markdown,
    "grounding": grounding_markdown,
    "serving": serving_markdown,
    "rooms": rooms_markdown,
    "codemap": code_map_markdown,
    "api": api_markdown,
}
# The files with sections, from the root of the checkout.
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/api.md",
    "docs/code-map.md",
    "docs/features.md",
    "docs/methods.md",
    "docs/models.md",
    "docs/new-method.md",
    "docs/performance.md",
    "docs/reproduction.md",
    "docs/results.md",
    "docs/serving.md",
    "docs/smol-model.md",
    "docs/tasks.md",
)
_SECTION = re.compile(r"(<!-- (?P<name>\w+) -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """`text` with the contents between each pair of section comments made anew.

    Raises:
        ValueError: the text has no section, or one of a name that is not in `SECTIONS`.
    """
    names = [match["name"] for match in _SECTION.finditer(text)]
    unknown = sorted({*names} - {*SECTIONS})
    if not names or unknown:
        given = f"unknown sections: {', '.join(unknown)}" if unknown else "no section"
        raise ValueError(f"{given}; a section is '<!-- NAME -->' ... '<!-- end of NAME -->', NAME out of {[*SECTIONS]}")
    return _SECTION.sub(lambda match: match[1] + SECTIONS[match["name"]]() + match[3], text)


def main() -> None:
    """Rewrite the files named on the command line, or all and the index of the methods."""
    if not sys.argv[1:]:
        INDEX_FILE.write_text(index_text(), encoding="utf-8")
    for path in [Path(name) for name in sys.argv[1:]] or [ROOT / name for name in PAGES]:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
