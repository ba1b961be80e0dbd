"""A sheet of scenes with their captions, for people to look at."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
MARGIN = 6
TEXT_LINES = 5
LINE_HEIGHT = 12


def contact_sheet(directory: str | Path, target: str | Path, columns: int = 6, rows: int = 4) -> Path:
    """Draw the first scenes of a folder, twice as large, with their visible categories underneath.

    Args:
        directory: A folder written by ``write_scenes``.
        target: Picture file to write; its ending chooses the format.
        columns: Scenes side by side.
        rows: Scenes one below the other.

    Raises:
        FileNotFoundError: ``directory`` is no scenes folder.
        ValueError: fewer than one column or row.
    """
    if columns < 1 or rows < 1:
        raise ValueError(f"{columns} columns and {rows} rows: both must be at least 1.")
    folder = Path(directory)
    side = folder / "annotations" / "scenes.json"
    if not side.is_file():
        raise FileNotFoundError(f"{folder} is no scenes folder: {side} is missing. Write one with 'vlm-guard scenes'.")
    scenes = json.loads(side.read_text(encoding="utf-8"))["scenes"][: columns * rows]
    with Image.open(folder / "images" / f"{scenes[0]['image_id']:012d}.png") as first:
        picture = first.width * SCALE
    cell_width, cell_height = picture + MARGIN, picture + MARGIN + TEXT_LINES * LINE_HEIGHT
    used_rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, used_rows * cell_height + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for place, scene in enumerate(scenes):
        left = MARGIN + place % columns * cell_width
        top = MARGIN + place // columns * cell_height
        with Image.open(folder / "images" / f"{scene['image_id']:012d}.png") as drawn:
            sheet.paste(drawn.resize((picture, picture), Image.Resampling.NEAREST), (left, top))
        text = f"{scene['scene_type']}: {', '.join(scene['present'])}"
        for number, line in enumerate(textwrap.wrap(text, 32)[:TEXT_LINES]):
            pen.text((left, top + picture + number * LINE_HEIGHT), line, fill="black", font=font)
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
