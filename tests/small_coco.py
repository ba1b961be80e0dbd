"""A small folder in MSCOCO's format, made by tests: coloured pictures with three or four objects each."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("person", "dog", "cat", "car", "chair", "dining table", "cup", "bottle")
IMAGES = 6


def make_coco_folder(folder: Path, images: int = IMAGES) -> Path:
    """Write the folder and return it. Image k (from 1) has the categories k, k+1, k+2 (cyclic) and a caption."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    listed, instances, captions = [], [], []
    for number in range(1, images + 1):
        name = f"{number:012d}.png"
        noise = np.random.default_rng(number).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
        listed.append({"id": number, "file_name": name, "width": 96, "height": 64})
        here = [(number + step) % len(CATEGORIES) for step in range(3)]
        instances += [
            {"id": len(instances) + 1 + step, "image_id": number, "category_id": category + 1, "bbox": [0, 0, 9, 9]}
            for step, category in enumerate(here)
        ]
        text = f"A {CATEGORIES[here[0]]} beside a {CATEGORIES[here[1]]}."
        captions.append({"id": number, "image_id": number, "caption": text})
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(CATEGORIES)]
    for name, annotations in (("instances_test", instances), ("captions_test", captions)):
        content = {"images": listed, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
