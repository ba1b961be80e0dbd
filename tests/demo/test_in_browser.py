"""The page in a real (headless) browser. Skipped where no Chromium with its driver is installed."""

import time

import pytest

pytest.importorskip("gradio")
pytest.importorskip("selenium")

from browser_visitor import CHROMIUM, DRIVER, Visitor
from selenium.webdriver.common.keys import Keys

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs Chromium and chromedriver (packages chromium-driver)"),
]


@pytest.fixture(scope="module")
def visitor(address):
    window = Visitor(address).open()  # here, so that any part of these tests runs by itself
    yield window
    window.close()


def test_it_opens_with_an_answered_example(visitor):
    visitor.open()
    assert visitor.one("#vg-picture img").get_attribute("alt").startswith("Picture ")
    assert visitor.all("#vg-plain .vg-word") and visitor.all("#vg-guarded .vg-word")
    assert "mentions hallucinated" in visitor.text("#vg-plain .vg-facts")
    assert visitor.all("#vg-below .vg-legend")
    assert visitor.errors() == []


def test_next_picture_empties_the_answers_and_compare_fills_them(visitor):
    before = visitor.text("#vg-picture figcaption")
    visitor.press("#vg-next")
    visitor.until(lambda: visitor.text("#vg-picture figcaption") != before, "the next picture")
    visitor.until(lambda: not visitor.all("#vg-plain .vg-word"), "empty cards")
    visitor.press("#vg-run")
    visitor.wait_until_idle("#vg-guarded .vg-word")


def test_a_picture_by_its_id_with_the_keyboard(visitor):
    visitor.fill("#vg-id", "3").send_keys(Keys.ENTER)
    visitor.until(lambda: "image 3" in visitor.text("#vg-picture figcaption"), "image 3")
    visitor.fill("#vg-id", "99999").send_keys(Keys.ENTER)
    visitor.until(lambda: "no image 99999" in visitor.text("#vg-picture-error"), "the error")
    assert "image 3" in visitor.text("#vg-picture figcaption")


def test_enter_in_the_prompt_asks(visitor):
    visitor.fill("#vg-prompt", "Describe this image briefly.").send_keys(Keys.ENTER)
    visitor.wait_until_idle("#vg-guarded .vg-word")
    assert "Describe this image briefly." in visitor.driver.execute_script(
        "return document.querySelector('#vg-prompt textarea, #vg-prompt input').value"
    )


def test_an_empty_prompt_is_told_in_the_page(visitor):
    visitor.fill("#vg-prompt", Keys.BACKSPACE)
    visitor.press("#vg-run")
    visitor.until(lambda: "error: the prompt is empty" in visitor.text("#vg-below"), "the error")
    visitor.until(lambda: visitor.one("#vg-run").is_enabled(), "a usable button")
    visitor.fill("#vg-prompt", "Please describe this image in detail.")


def test_a_wrong_number_is_told_in_the_page(visitor):
    visitor.unfold("#vg-generation", "#vg-seed input")
    visitor.fill("#vg-seed", "-1")
    visitor.press("#vg-run")
    visitor.until(lambda: "error: the seed is -1; allowed: 0 to" in visitor.text("#vg-below"), "the error")
    visitor.fill("#vg-seed", "0")
    field = visitor.one("#vg-tokens input[type=number]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("9999", Keys.TAB)
    visitor.until(lambda: "9999 is above the limit; it becomes 512" in visitor.text("#vg-tokens"), "what was moved")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("96", Keys.TAB)
    visitor.until(lambda: "limit" not in visitor.text("#vg-tokens"), "no word on a number that fits")


def test_another_method_brings_its_options(visitor):
    visitor.unfold("#vg-options", "#vg-option-pai-gain")
    field = visitor.one("#vg-methods input")
    field.send_keys(Keys.BACKSPACE)  # drops the method that is chosen
    field.send_keys("VCD")
    time.sleep(0.3)
    field.send_keys(Keys.ENTER, Keys.ESCAPE)
    visitor.wait_for("#vg-option-vcd-strength")
    visitor.until(lambda: not visitor.all("#vg-option-pai-gain"), "the old options to go")
    strength = visitor.one("#vg-option-vcd-strength input[type=number]")
    strength.send_keys(Keys.CONTROL, "a")
    strength.send_keys("0.5", Keys.TAB)
    visitor.unfold("#vg-copy", "#vg-python")
    visitor.until(lambda: "strength=0.5" in visitor.text("#vg-python"), "the option in the code")
    visitor.press("#vg-run")
    visitor.wait_until_idle("#vg-guarded .vg-word")
    assert "vcd" in visitor.text("#vg-guarded h3")


def test_a_pressed_word_shows_where_the_model_looked(visitor):
    if not visitor.all("#vg-guarded .vg-word"):
        visitor.press("#vg-run")
        visitor.wait_until_idle("#vg-guarded .vg-word")
    visitor.press("#vg-guarded .vg-word", 3)
    visitor.until(lambda: len(visitor.all("#vg-look .vg-map img")) >= 3, "three heat-maps")
    assert "Attention is not an explanation" in visitor.text("#vg-look")
    assert visitor.all("#vg-look .vg-plot svg") and len(visitor.all("#vg-look-words .vg-selected")) == 1
    shown = visitor.text("#vg-look .vg-looking strong")
    visitor.press("#vg-look-words .vg-word", 1)
    visitor.until(lambda: visitor.text("#vg-look .vg-looking strong") not in ("", shown), "another word")
    visitor.press("#vg-absolute input")
    visitor.until(lambda: visitor.all("#vg-look .vg-map img"), "maps on the absolute scale")
    assert visitor.errors() == []


def test_the_ladder_is_asked(visitor):
    next(tab for tab in visitor.all("#vg-tabs button[role=tab]") if tab.text == "Ask it").click()
    visitor.wait_for("#vg-ask")
    visitor.until(lambda: visitor.one("#vg-ask").is_displayed(), "the tab")
    visitor.press("#vg-ask")
    visitor.until(lambda: "right" in visitor.text("#vg-ladder .vg-note"), "the summary")
    visitor.until(lambda: visitor.one("#vg-ask").is_enabled(), "the end")
    assert len(visitor.all("#vg-ladder tbody tr:not(.vg-group)")) >= 4 and not visitor.all("#vg-ladder .vg-waiting")
    visitor.fill("#vg-own", "Is there a unicorn in the image?").send_keys(Keys.ENTER)
    visitor.until(lambda: "unicorn" in visitor.text("#vg-ladder"), "the own question")
    visitor.until(lambda: not visitor.all("#vg-ladder .vg-waiting"), "its answers")


def test_a_search_can_be_stopped(visitor):
    next(tab for tab in visitor.all("#vg-tabs button[role=tab]") if tab.text == "Compare").click()
    visitor.press("#vg-search")
    visitor.until(lambda: visitor.one("#vg-stop").is_enabled(), "the stop button")
    visitor.press("#vg-stop")
    visitor.wait_until_idle("#vg-run")
    assert any(words in visitor.text("#vg-below") for words in ("Stopped", "Looked at"))


def test_a_bad_file_is_refused_and_a_good_one_shown(visitor, tmp_path):
    from PIL import Image

    bad, good = tmp_path / "bad.png", tmp_path / "good.png"
    bad.write_bytes(b"not a picture")
    Image.new("RGB", (64, 48), (20, 120, 200)).save(good)
    before = visitor.one("#vg-picture img").get_attribute("alt")
    visitor.one("input[type=file]").send_keys(str(bad))
    visitor.until(lambda: "error: this picture cannot be read" in visitor.text("#vg-picture-error"), "the refusal")
    assert visitor.one("#vg-picture img").get_attribute("alt") == before
    visitor.one("input[type=file]").send_keys(str(good))
    visitor.until(lambda: "you sent" in visitor.one("#vg-picture img").get_attribute("alt"), "the sent picture")
    assert visitor.text("#vg-picture-error").strip() == ""
    visitor.press("#vg-run")
    visitor.wait_until_idle("#vg-guarded .vg-word")
    assert "truth not known" in visitor.text("#vg-plain .vg-facts")


def test_two_visitors_at_once(visitor, address):
    other = Visitor(address, width=390, height=844)
    try:
        other.open()
        assert other.driver.execute_script("return document.documentElement.scrollWidth") <= 390
        visitor.press("#vg-next")
        visitor.until(lambda: "image 1" in visitor.text("#vg-picture figcaption"), "the first picture")
        other.fill("#vg-id", "5").send_keys(Keys.ENTER)
        other.until(lambda: "image 5" in other.text("#vg-picture figcaption"), "image 5")
        visitor.press("#vg-run")
        other.press("#vg-run")
        for window, number in ((visitor, "image 1"), (other, "image 5")):
            window.wait_until_idle("#vg-guarded .vg-word")
            assert number in window.text("#vg-picture figcaption")
        assert "vcd" in visitor.text("#vg-guarded h3") and "pai" in other.text("#vg-guarded h3")
        assert other.one("#vg-where").is_displayed() and not visitor.one("#vg-where").is_displayed()
        assert other.errors() == []
    finally:
        other.close()


def test_a_full_queue_turns_visitors_away_politely(visitor, page_app, monkeypatch):
    monkeypatch.setattr(page_app._queue, "max_size", 0)
    visitor.press("#vg-run")
    visitor.until(lambda: "too many visitors" in visitor.text("#vg-below"), "the message")
    visitor.until(lambda: visitor.one("#vg-run").is_enabled(), "a usable button")
    monkeypatch.undo()
    visitor.press("#vg-run")
    visitor.wait_until_idle("#vg-guarded .vg-word")


def test_how_sure_marks_mentions_shows_a_box_and_repairs(visitor):
    visitor.open()
    visitor.errors()  # the browser still tells of the request that the full queue turned away
    next(tab for tab in visitor.all("#vg-tabs button[role=tab]") if tab.text == "How sure").click()
    visitor.until(lambda: visitor.one("#vg-check").is_displayed(), "the tab")
    visitor.press("#vg-check")
    visitor.until(lambda: visitor.all("#vg-sure-words .vg-mention .vg-word[data-word]"), "the marks")
    assert not visitor.all("#vg-sure-words .vg-repaired")
    signs = {sign.text for sign in visitor.all("#vg-sure-words .vg-strip .vg-sign")}
    assert signs <= {"✓", "✗"} and signs
    visitor.press("#vg-sure-words .vg-mention .vg-word[data-word]")
    visitor.until(lambda: visitor.all("#vg-sure .vg-map img"), "the box")
    assert "Is there" in visitor.text("#vg-sure .vg-parts")
    visitor.press("#vg-repair input")
    visitor.until(
        lambda: (
            "Repair takes nothing out" in visitor.text("#vg-sure-words") or visitor.all("#vg-sure-words .vg-repaired")
        ),
        "the repair",
    )
    assert visitor.errors() == []
    # Scores belong to one pair of answers: with the next picture they go.
    visitor.press("#vg-next")
    visitor.press("#vg-sure-words .vg-mention .vg-word[data-word]")
    visitor.until(lambda: "Press “Check both answers”" in visitor.text("#vg-sure-words"), "no old scores")
