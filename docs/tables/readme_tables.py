"""The tables of README.md and of pages in docs/, made from the methods, profiles, model and feature tables and results.

`python docs/tables/readme_tables.py README.md docs/results.md docs/methods.md docs/performance.md` rewrites them in
place; a test checks that they are current.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from generate_features import features_markdown
from measured_digest import digest_markdown
from measured_table import linear_markdown, measured_markdown, timings_markdown
from vlm_guard.families.table import models_markdown
from vlm_guard.method.table import methods_markdown, settings_markdown

SECTIONS: dict[str, Callable[[], str]] = {
    "methods": methods_markdown,
    "settings": settings_markdown,
    "models": models_markdown,
    "features": features_markdown,
    "digest": digest_markdown,
    "measured": measured_markdown,
    "timings": timings_markdown,
    "linear": linear_markdown,
}
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
    """Rewrite the files named on the command line."""
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
