"""The results page, in headless Chromium where there is one, and the plots."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_records import careful, careless, write_run
from small_coco import make_coco_folder

from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.page import build_report
from vlm_guard.eval.report.plots import save_plots
from vlm_guard.eval.tasks.chair.plots import mention_order

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    folder = make_coco_folder(tmp_path_factory.mktemp("data") / "small", images=12)
    (folder / "images" / "000000000003.png").unlink()  # its picture is lost after the run
    return folder


@pytest.fixture(scope="module")
def comparison(coco, tmp_path_factory):
    whole = make_coco_folder(tmp_path_factory.mktemp("data") / "small", images=12)
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, whole, {"none": careless, "var": careful}, skipped={"none": (5,), "var": (5,)})
    return compare_runs([folder])


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_page_holds_pictures_captions_and_numbers_and_loads_nothing(comparison, coco):
    page = build_report(comparison, images=coco)
    data = page_data(page)
    assert len(data["items"]) == 12
    first = data["items"][0]
    assert first["picture"].startswith("data:image/jpeg;base64,")
    start, end, node, wrong = first["captions"]["none"]["mentions"][1]
    assert (first["captions"]["none"]["text"][start:end], node, wrong) == ("table", "dining table", 1)
    assert data["items"][2]["picture"] is None
    assert "cannot read" in data["items"][4]["error"]
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_the_page_has_the_main_numbers_in_tables_and_all_others_to_open(comparison, coco):
    rows = {row["name"]: row for row in page_data(build_report(comparison, images=coco))["metrics"]}
    own = rows["chair.equal_length.chair_i"]
    assert own["main"] and own["signed"] and own["better"] == "lower" and own["label"] == "equal length"
    assert rows["chair_i"]["main"] and not rows["chair_i"]["signed"]
    for name in ("chair.fifth_5.chair_i", "chair.per_100_words", "chair.complete.chair_s", "pope.read_vcd.f1"):
        assert not rows[name]["main"]
    assert rows["pope.read_vcd.f1"]["label"] == "F1 by the vcd parser"
    assert '"equal length" is the difference of CHAIR_i' in page_data(build_report(comparison, images=coco))["legend"]
    guarded = comparison.results.method("var")
    assert guarded.fair["chair"]["mean_words"] > 0 and "chair.equal_length.chair_i" in guarded.estimates


def test_a_caption_cannot_close_the_script_element(comparison, coco):
    page = build_report(comparison, images=coco)
    assert "</script><b>" not in page
    assert "</script><b>" in page_data(page)["items"][0]["captions"]["none"]["text"]


def test_a_limit_shows_fewer_images_evenly_and_keeps_the_numbers(comparison, coco):
    full, few = (
        page_data(build_report(comparison, images=coco)),
        page_data(build_report(comparison, images=coco, limit=4)),
    )
    assert [item["id"] for item in few["items"]] == [1, 4, 7, 10]
    assert few["methods"] == full["methods"]
    assert (few["shown"], few["images"]) == (4, 12)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_works_in_a_browser(comparison, coco, tmp_path):
    page = build_report(comparison, images=coco)
    # The page's own controls are used from a script that runs after it and leaves its findings in the title.
    probe = """<script>
    const seen = {};
    seen.cards = document.querySelectorAll("article.item").length;
    seen.bad = [...document.querySelectorAll("article mark.bad")].map((mark) => mark.getAttribute("aria-label"));
    seen.rows = document.querySelectorAll("#numbers table:first-child tbody tr").length;
    seen.forest = document.querySelectorAll(".forest svg").length;
    const use = (id, value) => {
      $(id).value = value;
      $(id).dispatchEvent(new Event(id === "find" ? "input" : "change"));
    };
    const shown = () => document.querySelectorAll("article.item").length;
    use("show", "better"); seen.better = shown();
    use("show", "worse"); seen.worse = shown();
    use("show", "skipped"); seen.skipped = shown();
    use("show", "all"); use("find", "no such object"); seen.nothing = shown();
    use("find", ""); use("sort", "gain"); seen.all = shown();
    const before = document.documentElement.dataset.theme; $("theme").click();
    seen.theme = before !== document.documentElement.dataset.theme;
    seen.bold = document.querySelectorAll("article b").length;
    document.title = "FOUND" + JSON.stringify(seen);
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", probe), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>FOUND(.*?)</title>", dom)
    assert found, dom[:2000]
    seen = json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["cards"] == 12
    assert len(seen["bad"]) == 11 and all("not in the image" in label for label in seen["bad"])
    assert (seen["rows"], seen["forest"]) == (2, 1)
    assert (seen["better"], seen["worse"], seen["skipped"], seen["nothing"], seen["all"]) == (11, 0, 1, 0, 12)
    assert seen["theme"] is True
    assert seen["bold"] == 0  # a caption's markup stays text


def test_mentions_are_counted_by_their_place(comparison):
    table = mention_order(comparison.records["none"], positions=2)
    assert table.sum(0).tolist() == [[0, 11], [11, 11]]


def test_plots_are_written(comparison, tmp_path):
    pytest.importorskip("matplotlib")
    written = save_plots(comparison, tmp_path, "svg")
    assert [path.name for path in written] == ["chair.svg", "mention-order.svg", "pope.svg"]
    assert all("<svg" in path.read_text(encoding="utf-8") for path in written)
    with pytest.raises(ValueError, match="png, svg or pdf"):
        save_plots(comparison, tmp_path, "bmp")
