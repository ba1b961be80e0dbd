"""Take the demo's pictures for the documentation: both widths, light and dark.

    PYTHONPATH=tests python tests/demo/take_screenshots.py docs/images

Needs what the browser tests need. Take them again when the page or the built-in model has changed, and look at them.
"""

import sys
import time
from pathlib import Path

import torch
from browser_visitor import Visitor
from PIL import Image

from vlm_guard.builtin_model import builtin
from vlm_guard.demo.app import build_app, launch_options

PORT = 7893
DESKTOP, PHONE = (1280, 900), (390, 844)


def shoot(visitor: Visitor, path: Path, width: int, highest: int = 2400) -> None:
    """The whole page as a PNG of 256 colours."""
    height = visitor.driver.execute_script("return document.querySelector('.gradio-container .main').scrollHeight")
    visitor.resize(width, min(height, highest))
    time.sleep(0.5)
    visitor.driver.save_screenshot(str(path))
    picture = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    picture.save(path, optimize=True)
    print(path.name, picture.size, f"{path.stat().st_size // 1024} KB")


def tour(visitor: Visitor, folder: Path, name: str, size: tuple[int, int]) -> None:
    """The tabs of an opened page."""
    visitor.open()
    shoot(visitor, folder / f"demo-compare-{name}.png", size[0])
    visitor.resize(*size)
    visitor.press("#vg-plain .vg-hallucinated .vg-word, #vg-plain .vg-mention .vg-word")
    visitor.until(lambda: visitor.all("#vg-look .vg-map img"), "heat-maps")
    shoot(visitor, folder / f"demo-look-{name}.png", size[0])
    visitor.resize(*size)
    next(tab for tab in visitor.all("#vg-tabs button[role=tab]") if tab.text == "How sure").click()
    visitor.until(lambda: visitor.one("#vg-check").is_displayed(), "the tab")
    visitor.wait_for("#vg-repair input")
    visitor.press("#vg-repair input")
    visitor.press("#vg-check")
    visitor.until(lambda: visitor.all("#vg-sure-words .vg-repaired, #vg-sure-words .vg-fine"), "the scores")
    visitor.press("#vg-sure-words .vg-hallucinated .vg-word, #vg-sure-words .vg-mention .vg-word")
    visitor.until(lambda: visitor.all("#vg-sure .vg-map img"), "the box")
    shoot(visitor, folder / f"demo-sure-{name}.png", size[0])
    visitor.resize(*size)
    next(tab for tab in visitor.all("#vg-tabs button[role=tab]") if tab.text == "Ask it").click()
    visitor.until(lambda: visitor.one("#vg-ask").is_displayed(), "the tab")
    visitor.press("#vg-leading input")
    visitor.press("#vg-ask")
    visitor.until(lambda: visitor.one("#vg-ask").is_enabled() and visitor.all("#vg-ladder .vg-note"), "the ladder")
    shoot(visitor, folder / f"demo-ask-{name}.png", size[0])


def main(folder: Path) -> None:
    """Serve the built-in model's page and photograph it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    app = build_app(*builtin(), opening=True)
    app.launch(**launch_options(PORT), prevent_thread_lock=True, quiet=True)
    for name, size, dark in (
        ("wide", DESKTOP, False), ("wide-dark", DESKTOP, True), ("phone", PHONE, False), ("phone-dark", PHONE, True)
    ):  # fmt: skip
        visitor = Visitor(f"http://127.0.0.1:{PORT}/", *size, dark=dark)
        try:
            tour(visitor, folder, name, size)
        finally:
            visitor.close()
    app.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
