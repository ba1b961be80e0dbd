r"""Make ``atlas.png`` and ``atlas.json`` from icon packages. Needed only to change the icons: both files are committed.

    npm install --ignore-scripts @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 \
        @iconify-json/twemoji@1.2.5 @iconify-json/emojione@1.2.3 @iconify-json/mdi@1.2.3
    pip install resvg_py
    python -m vlm_guard.eval.scenes.build_atlas node_modules/@iconify-json

Every icon is rasterised once, cropped to its visible part and fitted into a 48 x 48 cell. Rendering a scene reads only
the atlas, so no SVG library's rounding can change a scene.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image

from vlm_guard.eval.scenes.categories import NAMES
from vlm_guard.eval.scenes.drawn_icons import DRAWN

CELL = 48
COLUMNS = 20

# Icon names per category, tried in every colour set; the category's own name with dashes when not listed.
EMOJI: dict[str, list[str]] = {
    "person": ["person-standing", "man-standing", "woman-standing"],
    "car": ["automobile"],
    "train": ["locomotive"],
    "truck": ["delivery-truck"],
    "boat": ["sailboat"],
    "traffic light": ["vertical-traffic-light"],
    "sheep": ["ewe"],
    "tie": ["necktie"],
    "suitcase": ["luggage"],
    "frisbee": ["flying-disc"],
    "sports ball": ["soccer-ball"],
    "bottle": ["bottle-with-popping-cork"],
    "cup": ["hot-beverage", "teacup-without-handle"],
    "knife": ["kitchen-knife"],
    "bowl": ["bowl-with-spoon"],
    "apple": ["red-apple"],
    "orange": ["tangerine"],
    "donut": ["doughnut"],
    "cake": ["shortcake"],
    "tv": ["television"],
    "laptop": ["laptop", "laptop-computer"],
    "mouse": ["computer-mouse"],
    "cell phone": ["mobile-phone"],
    "book": ["closed-book"],
    "clock": ["alarm-clock"],
    "vase": ["amphora"],
    "couch": ["couch-and-lamp"],
}
# Sets whose picture of a category is another thing; the project's own drawing is used instead.
NOT_FROM_EMOJI = {"fork", "bench", "sink", "bowl", "cup", "bottle", "frisbee", "couch", "vase", "tennis racket"}
# One-colour glyphs, tinted when drawn: the unseen style of categories without emoji.
GLYPHS: dict[str, str] = {
    "fire hydrant": "fire-hydrant",
    "bench": "bench-back",
    "baseball bat": "baseball-bat",
    "fork": "silverware-fork",
    "dining table": "table-furniture",
    "remote": "remote",
    "microwave": "microwave",
    "oven": "stove",
    "toaster": "toaster",
    "sink": "countertop",
    "refrigerator": "fridge",
    "hair drier": "hair-dryer",
    "couch": "sofa",
    "bottle": "bottle-wine",
    "cup": "coffee",
    "bowl": "bowl-mix",
}
TRAIN_SETS = ("noto", "fluent-emoji-flat")
HELD_OUT_SETS = ("twemoji", "emojione")


def rasterise(svg: str) -> Image.Image:
    """An RGBA icon whose longer side is 48 pixels, cropped to what is visible."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=192, height=192))
    icon = Image.open(io.BytesIO(png)).convert("RGBA")
    box = icon.getchannel("A").point(lambda value: 255 if value > 20 else 0).getbbox()
    if box is None:
        raise ValueError("An icon came out empty; check its SVG.")
    icon = icon.crop(box)
    longest = max(icon.size)
    size = [max(6, round(side * CELL / longest)) for side in icon.size]
    return icon.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def icon_svg(icon_set: dict, name: str) -> str | None:
    """The SVG of ``name`` in an iconify set, following aliases; None where the set has no such icon."""
    name = icon_set.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icon_set["icons"].get(name)
    if icon is None:
        return None
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    body = icon["body"].replace("currentColor", "#ffffff")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )


def gather(folder: Path) -> list[tuple[dict, Image.Image]]:
    """Every icon with its index entry, in the order of the categories."""
    sets = {
        name: json.loads((folder / name / "icons.json").read_text()) for name in (*TRAIN_SETS, *HELD_OUT_SETS, "mdi")
    }
    out: list[tuple[dict, Image.Image]] = []
    for category in NAMES:
        if category in DRAWN:
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">{DRAWN[category]}</svg>'
            out.append(({"category": category, "style": "drawn", "icon": category}, rasterise(svg)))
        if category in GLYPHS:
            glyph = icon_svg(sets["mdi"], GLYPHS[category])
            if glyph is None:
                raise ValueError(f"mdi has no icon {GLYPHS[category]!r}")
            out.append(({"category": category, "style": "mdi", "icon": GLYPHS[category]}, rasterise(glyph)))
        if category in NOT_FROM_EMOJI:
            continue
        for style in (*TRAIN_SETS, *HELD_OUT_SETS):
            for name in EMOJI.get(category, [category.replace(" ", "-")]):
                emoji = icon_svg(sets[style], name)
                if emoji is not None:
                    out.append(({"category": category, "style": style, "icon": name}, rasterise(emoji)))
    return out


def build(folder: Path, target: Path) -> None:
    """Write ``atlas.png`` and ``atlas.json`` into ``target``; ``folder`` holds the iconify packages."""
    icons = gather(folder)
    rows = -(-len(icons) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    entries = []
    for place, (entry, icon) in enumerate(icons):
        left, top = place % COLUMNS * CELL, place // COLUMNS * CELL
        sheet.paste(icon, (left, top))
        entries.append({**entry, "box": [left, top, icon.width, icon.height]})
    sources = {
        name: {
            "package": f"@iconify-json/{name}",
            "version": json.loads((folder / name / "package.json").read_text())["version"],
            "license": json.loads((folder / name / "info.json").read_text())["license"]["spdx"],
            "author": json.loads((folder / name / "info.json").read_text())["author"]["name"],
        }
        for name in (*TRAIN_SETS, *HELD_OUT_SETS, "mdi")
    }
    sources["drawn"] = {"package": "this project", "license": "Apache-2.0"}
    sheet.save(target / "atlas.png", optimize=True)
    lines = ",\n".join("    " + json.dumps(entry) for entry in entries)
    text = f'{{\n  "sources": {json.dumps(sources)},\n  "icons": [\n{lines}\n  ]\n}}\n'
    (target / "atlas.json").write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build(Path(sys.argv[1]), Path(__file__).parent)
