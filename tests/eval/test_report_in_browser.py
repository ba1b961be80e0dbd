"""The results page as a reader uses it, in headless Chromium. Skipped where it or its driver is not installed."""

import pytest

pytest.importorskip("selenium")

from browser_visitor import CHROMIUM, DRIVER, Visitor
from run_records import careful, careless, write_run
from selenium.webdriver.common.by import By
from small_coco import make_coco_folder

from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.page import build_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs Chromium and chromedriver (packages chromium-driver)"),
]
PICTURES = 45


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco_folder(tmp_path_factory.mktemp("data") / "small", images=PICTURES)


@pytest.fixture(scope="module")
def visitor(coco, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, count in (("many", PICTURES), ("few", 4)):
        write_run(folder / name, coco, {"none": careless, "var": careful}, count=count)
        (folder / f"{name}.html").write_text(build_report(compare_runs([folder / name])), encoding="utf-8")
    window = Visitor(f"file://{folder}/")
    yield window
    assert window.errors() == []
    window.close()


def shown(visitor, css):
    return [element for element in visitor.driver.find_elements(By.CSS_SELECTOR, css) if element.is_displayed()]


def test_more_pictures_come_until_all_are_there(visitor):
    visitor.driver.get(f"{visitor.address}many.html")
    first = len(shown(visitor, "article.item"))
    assert 0 < first < PICTURES and shown(visitor, "#more")
    while shown(visitor, "#more"):
        visitor.press("#more")
    assert len(shown(visitor, "article.item")) == PICTURES


def test_the_filter_counts_and_hides(visitor):
    visitor.driver.get(f"{visitor.address}many.html")
    visitor.one("#find").send_keys("000000000007")
    visitor.until(lambda: visitor.text("#count") == f"1 of {PICTURES} images", "one picture")
    assert len(shown(visitor, "article.item")) == 1 and not shown(visitor, "#more")


def test_differences_are_drawn_and_few_pictures_have_none(visitor):
    visitor.driver.get(f"{visitor.address}many.html")
    assert shown(visitor, "#differences svg") and shown(visitor, "#numbers small")
    visitor.driver.get(f"{visitor.address}few.html")
    assert not shown(visitor, "#differences svg")
    assert "no intervals for fewer than 10 images" in visitor.text("#legend")
    assert not shown(visitor, "#numbers small") and "(-50.0)" in visitor.text("#numbers")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_at_the_side(visitor, width):
    visitor.resize(width, 900)
    visitor.driver.get(f"{visitor.address}many.html")
    for _ in ("light", "dark"):
        assert visitor.driver.execute_script("return document.documentElement.scrollWidth") <= width
        visitor.press("#theme")
    visitor.resize(1280, 900)
