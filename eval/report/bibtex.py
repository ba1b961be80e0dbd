"""BibTeX entries from the citations that this project has: a title, often a venue and a year, and an arXiv number.

Nothing is made up: authors are in none of our citations, so entries have none.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vlm_guard import __version__

SOFTWARE_KEY = "vlm_guard"
SOFTWARE_TITLE = "vlm_guard: training-free hallucination mitigation for Hugging Face vision-language models"
SOFTWARE_AUTHORS = "The vlm_guard developers"
"""As in CITATION.cff, which is not installed with the package; a test holds the two together."""

_CITATION = re.compile(r"(?P<title>.+?)(?:, (?P<venue>[^,;]+) (?P<year>\d{4}))?, arXiv (?P<eprint>\d{4}\.\d{4,5})")
_ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≈": r"$\approx$",
    "−": "$-$",
}


def latex_text(text: str) -> str:
    """A text as LaTeX prints it: every sign with a meaning of its own is escaped, white space is single blanks."""
    return "".join(_ESCAPES.get(sign, sign) for sign in " ".join(text.split()))


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper as a citation of this project names it.

    Attributes:
        key: what a citation takes, unique in one list.
        title: of the paper.
        venue: where it appeared, "" where only arXiv is known.
        year: of the venue, else of the arXiv number.
        eprint: arXiv number.
    """

    key: str
    title: str
    venue: str
    year: str
    eprint: str

    def entry(self) -> str:
        """The BibTeX entry. Without authors, styles sort by `key`."""
        fields = {"title": f"{{{latex_text(self.title)}}}", "year": self.year}
        if self.venue:
            fields["booktitle"] = latex_text(self.venue)
        fields |= {"eprint": self.eprint, "archivePrefix": "arXiv", "key": latex_text(self.key)}
        return _entry("inproceedings" if self.venue else "misc", self.key, fields)


def papers_in(citation: str, name: str) -> list[Paper]:
    """The papers of a citation such as "TITLE, ECCV 2024, arXiv 2407.21771; OTHER TITLE, arXiv ...".

    Args:
        citation: the `paper` of a method or the `source` of a task; what is no paper with an arXiv number is left out.
        name: begins the keys, which end in the year.
    """
    papers: list[Paper] = []
    for part in citation.split("; "):
        found = _CITATION.fullmatch(part.strip())
        if found is None:
            continue
        year = found["year"] or f"20{found['eprint'][:2]}"
        key = f"{name}{year}"
        taken = sum(paper.key.startswith(key) for paper in papers)
        papers.append(
            Paper(
                key=key + ("" if not taken else chr(ord("a") + taken)),
                title=found["title"],
                venue=found["venue"] or "",
                year=year,
                eprint=found["eprint"],
            )
        )
    return papers


def without_repeats(papers: Iterable[Paper]) -> list[Paper]:
    """The papers, each once: the same arXiv number is the same paper."""
    return list({paper.eprint: paper for paper in reversed(list(papers))}.values())[::-1]


def software_entry() -> str:
    """The entry of this software."""
    fields = {
        "title": f"{{{latex_text(SOFTWARE_TITLE)}}}",
        "author": f"{{{latex_text(SOFTWARE_AUTHORS)}}}",
        "note": f"Software, version {latex_text(__version__)}",
    }
    return _entry("misc", SOFTWARE_KEY, fields)


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"
