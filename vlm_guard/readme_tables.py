"""The README's tables, made from the methods, the model and feature tables and committed results.

`python -m vlm_guard.readme_tables README.md` rewrites them in place; a test checks that they are current.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from vlm_guard.generate_features import features_markdown
from vlm_guard.measured_table import measured_markdown
from vlm_guard.method_table import methods_markdown
from vlm_guard.model_table import models_markdown

SECTIONS: dict[str, Callable[[], str]] = {
    "methods": methods_markdown,
    "models": models_markdown,
    "features": features_markdown,
    "measured": measured_markdown,
}


def with_tables(text: str) -> str:
    """`text` with the contents between each pair of section comments made anew.

    Raises:
        ValueError: a section's comments are missing.
    """
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the text has no '<!-- {name} -->' ... '<!-- end of {name} -->'")
        table = make()
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


def main() -> None:
    """Rewrite the file named on the command line."""
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
