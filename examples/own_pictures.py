"""Score a model, plain and guarded, on pictures of your own.

    python examples/own_pictures.py FOLDER OUT [MODEL]

FOLDER holds pictures and one file `objects.json` that says what is in each: {"kitchen.jpg": ["oven", "cup"], ...}, with
MSCOCO's names of things, which is what CHAIR knows. The script writes this down in MSCOCO's format beside the pictures
and runs the evaluation; results, all answers and a page to look at are in OUT.
"""

import json
import sys
from pathlib import Path

from PIL import Image

from vlm_guard.eval.report.compare import compare_runs
from vlm_guard.eval.report.page import build_report
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings


def write_annotations(folder: Path) -> None:
    """Write `annotations/instances_own.json` and `captions_own.json` from `objects.json`."""
    listed = json.loads((folder / "objects.json").read_text(encoding="utf-8"))
    categories = {name: number for number, name in enumerate(sorted(set().union(*listed.values())), start=1)}
    images, instances = [], []
    for number, (name, objects) in enumerate(sorted(listed.items()), start=1):
        with Image.open(folder / name) as picture:
            images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        for thing in objects:
            box = {"id": len(instances) + 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}  # CHAIR asks for no place
            instances.append({**box, "image_id": number, "category_id": categories[thing]})
    named = [{"id": number, "name": name} for name, number in categories.items()]
    (folder / "annotations").mkdir(exist_ok=True)
    for kind, annotations in (("instances", instances), ("captions", [])):
        content = {"images": images, "annotations": annotations, "categories": named}
        (folder / "annotations" / f"{kind}_own.json").write_text(json.dumps(content), encoding="utf-8")


def main(folder: str, out: str, model: str = "builtin") -> None:
    """Evaluate and print the two rates that matter most, with their intervals."""
    write_annotations(Path(folder))
    settings = RunSettings(model=model, data=f"coco:{folder}", tasks=["chair"], methods=["none", "pai:gain=0.4"])
    results = evaluate(settings, Path(out))
    for method in results.methods:
        for name in ("chair_i", "recall"):
            rate = method.estimates[name]
            print(f"{method.label:>14} {name:8} {rate.value:.1%} (95 % interval {rate.low:.1%} to {rate.high:.1%})")
    page = Path(out) / "report.html"
    page.write_text(build_report(compare_runs([Path(out)]), images=Path(folder)), encoding="utf-8")
    print(f"every answer beside its picture: {page}")


if __name__ == "__main__":
    main(*sys.argv[1:])
