"""The tables of README.md and of pages in docs/ are current, and the README's commands are the ones that CI runs."""

import re
from pathlib import Path

import pytest
from PIL import Image

from measured_digest import verdict
from readme_tables import PAGES, SECTIONS, with_tables
from run_command import run_command
from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.method.index import INDEX_FILE, index_text

ROOT = Path(__file__).resolve().parents[1]
MOST_README_LINES = 129
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_current(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python docs/tables/readme_tables.py"


def test_the_index_of_the_methods_is_current():
    assert INDEX_FILE.read_text(encoding="utf-8") == index_text(), "run: python docs/tables/readme_tables.py"


def test_every_table_is_shown_somewhere():
    texts = "".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    assert all(texts.count(f"<!-- {section} -->") == 1 for section in SECTIONS)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_README_LINES


def pages():
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "kernels" / "README.md"])


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to what is not there: {missing}"


def test_every_page_is_linked_from_the_readme():
    linked = {(ROOT / link).resolve() for link in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert not set((ROOT / "docs").glob("*.md")) - linked


def test_every_page_of_a_group_of_methods_is_linked_from_their_page():
    folder = ROOT / "docs" / "methods"
    page = folder.parent / "methods.md"
    linked = {(page.parent / link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))}
    assert not set(folder.glob("*.md")) - linked


def test_every_method_has_a_group_and_stands_on_its_page():
    from which_method import PAGES as GROUPS
    from which_method import group_of

    from vlm_guard.method.registry import method_names

    for name in set(method_names()) - {"none"}:
        text = (ROOT / "docs" / GROUPS[group_of(name)]).read_text(encoding="utf-8")
        assert f"| `{name}` |" in text, f"{name} is missing on {GROUPS[group_of(name)]}"


def test_a_text_without_sections_is_refused():
    with pytest.raises(ValueError, match="no section; a section is"):
        with_tables("# Title")
    with pytest.raises(ValueError, match="unknown sections: weather"):
        with_tables("<!-- weather -->\n<!-- end of weather -->")


BELOW, ABOUT, ABOVE = {"low": -2, "high": -1}, {"low": -1, "high": 1}, {"low": 1, "high": 2}


@pytest.mark.parametrize(
    ("chair_i", "recall", "words"),
    [
        (BELOW, ABOUT, "helps"),
        (BELOW, ABOVE, "helps"),
        (BELOW, BELOW, "costs recall"),
        (ABOUT, ABOUT, "no clear change"),
        (ABOUT, ABOVE, "finds more"),
        (ABOUT, BELOW, "worse"),
        (ABOVE, ABOUT, "worse"),
        (ABOVE, BELOW, "worse"),
        (ABOVE, ABOVE, "names more, right and wrong"),
    ],
)
def test_the_words_for_what_a_method_does_follow_from_the_intervals(chair_i, recall, words):
    assert verdict(chair_i, recall) == words


def test_the_command_of_a_run_names_what_is_not_the_default():
    model = {"name": "smol", "dtype": "bfloat16", "packed_weights": True}
    tasks = {
        "chair": {"max_new_tokens": 96},
        "pope": {"max_new_tokens": 10, "origin": "built, 2 per image and strategy"},
        "grounding": {"max_new_tokens": 96, "repair": "rewrite"},
    }
    methods = [{"label": "none"}, {"label": "pai:gain=0.4"}]
    data = {"name": "scenes:common:31", "images": 60}
    run = {"model": model, "tasks": tasks, "methods": methods, "data": data, "decoding": {"batch_size": 20}}
    assert run_command(run) == (
        "vlm-guard eval --model smol --dtype bfloat16 --pack-weights --data scenes:common:31 --count 60 "
        "--task chair,pope,grounding --max-new-tokens 96 --pope-per-image 2 --set grounding.max_new_tokens=96 "
        "--set grounding.repair=rewrite --batch-size 20 --method none --method pai:gain=0.4 --out DIR"
    )
    tasks = {"chair": {"max_new_tokens": 512}, "pope": {"max_new_tokens": 10, "origin": "built, 6 per image"}}
    model = {"name": "builtin", "dtype": "float32"}
    assert run_command(run | {"model": model, "tasks": tasks, "decoding": {"batch_size": 16}}) == (
        "vlm-guard eval --model builtin --data scenes:common:31 --count 60 --task chair,pope --method none "
        "--method pai:gain=0.4 --out DIR"
    )


def test_ci_runs_the_readmes_test_command():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("python3 -m venv .venv")]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readmes_python_example_runs(tmp_path, monkeypatch, capsys):
    """As it is printed, with the built-in model's folder for the model and any picture for the photograph."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("llava-hf/llava-1.5-7b-hf", str(BUILTIN_DIR)).replace("max_new_tokens=128", "max_new_tokens=4")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96), (120, 180, 90)).save("photo.jpg")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_readme_installs_the_pinned_releases_of_torch():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    line = next(line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "--index-url" in line)
    assert {word for word in line.split() if "==" in word} <= set(pins)
