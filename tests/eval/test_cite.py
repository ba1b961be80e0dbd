"""`vlm-guard cite`: valid BibTeX of what was named or run, and a paragraph that cites only what is in it."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from vlm_guard import __version__
from vlm_guard.cli import main
from vlm_guard.eval.report import bibtex
from vlm_guard.eval.report.citing import cited_by, papers_of_method, papers_of_task
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.tasks.shared.registry import task_names
from vlm_guard.method.registry import method_files

ROOT = Path(__file__).resolve().parents[2]
ENTRY = re.compile(r"@(\w+)\{([\w.+-]+),\n((?:  \w+ = \{.*\},?\n)+)\}")


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(ROOT / "eval/results/smol_common.json", folder / "results.json")
    return folder


def entries(text: str) -> list[str]:
    """The keys of a BibTeX text; that it has nothing else but comments is checked on the way."""
    rest = ENTRY.sub("", text)
    assert all(line.startswith("%") or not line for line in rest.splitlines()) and "@" not in rest
    for _, _, fields in ENTRY.findall(text):
        depth = 0
        for sign in re.sub(r"\\.", "", fields):
            depth += {"{": 1, "}": -1}.get(sign, 0)
            assert depth >= 0
        assert depth == 0 and not re.search(r"(?<!\\)[&%$#_]", fields)
    return [key for _, key, _ in ENTRY.findall(text)]


def test_every_method_and_benchmark_has_an_entry():
    assert {name for name in method_files() if not papers_of_method(name)} == {"none"}
    own = {name for name in task_names() if not papers_of_task(name)}
    assert own == {"ask", "caption", "grounding", "mc", "yesno"}
    keys = entries(cited_by([*method_files(), *task_names()]).as_text())
    assert len({*keys}) == len(keys) > 40
    assert {"vlm_guard", "pai2024", "softpag2024", "softpag2025", "chair2018", "pope2023"} <= {*keys}


def test_a_citation_is_taken_apart_and_escaped():
    (paper,) = bibtex.papers_in("Cats & Dogs, 100 % of_them: {A}, Findings of ACL 2025, arXiv 2405.17820", "pets")
    assert (paper.key, paper.venue, paper.year) == ("pets2025", "Findings of ACL", "2025")
    assert r"title = {{Cats \& Dogs, 100 \% of\_them: \{A\}}}" in paper.entry()
    assert entries(paper.entry()) == ["pets2025"]
    assert bibtex.papers_in("the unmodified model", "none") == []


def test_the_software_is_cited_as_the_citation_file_says():
    known = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert known["title"] == bibtex.SOFTWARE_TITLE and str(known["version"]) == __version__
    assert known["authors"] == [{"name": bibtex.SOFTWARE_AUTHORS}]


def test_a_run_is_cited_with_a_paragraph_that_says_what_it_was(run, capsys):
    main_exits(["cite", str(run)], 0)
    keys = entries(capsys.readouterr().out)
    main_exits(["cite", str(run), "--only", "text"], 0)
    text = " ".join(capsys.readouterr().out.split())
    named = {key for keys in re.findall(r"\\cite\{([^}]*)\}", text) for key in keys.split(",")}
    assert named == {*keys}
    results = read_results(run)
    pictures, batch = f"{results.data['images']} images of scenes:common", results.decoding["batch_size"]
    for fact in (pictures, results.model["weights"], f"greedy, batches of {batch}, seed 0", "0.95"):
        assert fact in text
    for method in results.methods:
        assert f"{method.label}" in text
    assert r"move\_fraction = 0.6" in text and "2000 resamples" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cite", "opra"], "Did you mean 'opera'"),
        (["cite", "auto"], "give the run's folder"),
        (["cite", "pai", "--only", "text"], "give the folder"),
        (["cite", "--only", "pdf"], "must be bib or text"),
    ],
)
def test_what_cannot_be_cited_is_refused_in_a_line(arguments, said, capsys):
    main_exits(arguments, 2)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def main_exits(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == code
