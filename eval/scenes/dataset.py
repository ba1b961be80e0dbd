"""Write scenes as a folder in MSCOCO's format, and make and keep the benchmark's folders.

A folder holds ``images/000000000001.png`` ..., ``annotations/instances_scenes.json`` and ``captions_scenes.json``,
which pycocotools reads, and ``annotations/scenes.json`` with what MSCOCO has no place for: each scene's type, the
categories that belong there, and which of them are present or missing partners.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_guard.eval.scenes.captions import brief_caption, detailed_caption, list_caption
from vlm_guard.eval.scenes.categories import COCO_IDS, NAMES, SUPERCATEGORIES
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import SIZE, Scene, render
from vlm_guard.eval.scenes.world import SCENE_TYPES, SPLITS, partners

BENCHMARK_SEED = 7
"""The seed behind ``scenes:SPLIT`` without a seed."""

TRAINING_SEED = 20_000
"""The seed of the scenes that the built-in model learns from; no data set may use it."""

VERSION = 1
"""Grows when the same seed gives other scenes, so that cached folders are not mixed up."""

_CAPTION_WORD = 1_000
_INFO = {"description": "Scenes of vlm_guard: synthetic pictures of icons", "version": str(VERSION)}


@dataclass(frozen=True, kw_only=True)
class ScenesSpec:
    """A split and a seed, as in ``scenes:broken:7741``."""

    split: str
    seed: int = BENCHMARK_SEED

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"Unknown split {self.split!r}; the splits are {', '.join(SPLITS)}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"The seed {self.seed} must be a whole number from 0 to 2**63 - 1.")
        if self.seed == TRAINING_SEED:
            raise ValueError(f"Seed {TRAINING_SEED} is the training scenes'; choose another to keep the test fair.")


def parse_scenes_spec(text: str) -> ScenesSpec:
    """Read ``scenes:broken`` or ``scenes:broken:7741``.

    Raises:
        ValueError: the text has another form, an unknown split or a seed that is not a whole number.
    """
    parts = text.split(":")
    if parts[0] != "scenes" or len(parts) not in (2, 3):
        raise ValueError(f"{text!r} is not 'scenes:SPLIT' or 'scenes:SPLIT:SEED', for example scenes:broken:7741.")
    if len(parts) == 2:
        return ScenesSpec(split=parts[1])
    if not (parts[2].isascii() and parts[2].isdigit()):
        raise ValueError(f"The seed {parts[2]!r} in {text!r} must be a whole number.")
    return ScenesSpec(split=parts[1], seed=int(parts[2]))


def _instances(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """MSCOCO annotations of one scene; the outline is the visible part's box, the area counts visible pixels."""
    out = []
    for number, item in enumerate(scene.objects):
        x, y, width, height = item.box
        outline = [x, y, x + width, y, x + width, y + height, x, y + height]
        out.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": COCO_IDS[item.category],
                "bbox": [x, y, width, height],
                "area": item.area,
                "iscrowd": 0,
                "segmentation": [outline],
            }
        )
    return out


def _captions(scene: Scene, spec: ScenesSpec, index: int) -> list[str]:
    """Two detailed captions, a brief one and a list, drawn apart from the picture."""
    draws = Draws(_CAPTION_WORD, spec.seed, index)
    objects = list(scene.objects)
    return [
        detailed_caption(draws, scene.scene_type, objects),
        detailed_caption(draws, scene.scene_type, objects),
        brief_caption(draws, scene.scene_type, objects),
        list_caption(draws, objects),
    ]


def _side_record(scene: Scene, image_id: int) -> dict[str, Any]:
    """What the scene's type would lead one to expect, against what is there."""
    kind = SCENE_TYPES[scene.scene_type]
    present = scene.present
    missing = partners(kind, present)
    expected = {category for category in present if category in partners(kind, present - {category})}
    return {
        "image_id": image_id,
        "scene_type": kind.name,
        "pool": list(kind.pool),
        "present": [NAMES[category] for category in sorted(present)],
        "present_partners": [NAMES[category] for category in sorted(expected)],
        "missing_partners": [NAMES[category] for category in sorted(missing)],
    }


def _write_into(folder: Path, spec: ScenesSpec, count: int) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for index in range(count):
        scene, image_id = render(spec.split, spec.seed, index), index + 1
        name = f"{image_id:012d}.png"
        Image.fromarray(scene.pixels).save(folder / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": SIZE, "height": SIZE})
        instances += _instances(scene, image_id, len(instances) + 1)
        for text in _captions(scene, spec, index):
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": text})
        records.append(_side_record(scene, image_id))
    categories = [
        {"id": number, "name": name, "supercategory": group}
        for number, name, group in zip(COCO_IDS, NAMES, SUPERCATEGORIES)
    ]
    files = {
        "instances_scenes.json": {"annotations": instances, "categories": categories},
        "captions_scenes.json": {"annotations": captions},
    }
    for name, content in files.items():
        text = json.dumps({"info": _INFO, "licenses": [], "images": images, **content})
        (folder / "annotations" / name).write_text(text, encoding="utf-8")
    side = {"split": spec.split, "seed": spec.seed, "version": VERSION, "scenes": records}
    (folder / "annotations" / "scenes.json").write_text(json.dumps(side), encoding="utf-8")


def write_scenes(directory: str | Path, split: str, count: int, seed: int = BENCHMARK_SEED) -> Path:
    """Write ``count`` scenes of a split as a folder in MSCOCO's format; the folder appears whole or not at all.

    Args:
        directory: Folder to make; it may exist if it is empty.
        split: ``common``, ``broken``, ``held-out``, ``crowded`` or ``small``.
        count: Number of scenes; scene number k is the same whatever the count.
        seed: Any seed but the training scenes'.

    Raises:
        ValueError: unknown split, count below 1, unusable seed, or the folder has something in it.
    """
    spec = ScenesSpec(split=split, seed=seed)
    if count < 1:
        raise ValueError(f"The count {count} must be at least 1.")
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; choose another place for the scenes.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        # mkdtemp is for its owner only; the finished folder gets the usual permissions.
        made = temporary / target.name
        _write_into(made, spec, count)
        made.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def cache_folder() -> Path:
    """``$VLM_GUARD_CACHE``, or ``~/.cache/vlm_guard``."""
    chosen = os.environ.get("VLM_GUARD_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "vlm_guard"


def load_scenes(split: str, count: int = 500, seed: int | None = None) -> Path:
    """The folder of a benchmark split, made on first use (5 ms a scene) and kept in the user's cache.

    Args:
        split: ``common``, ``broken``, ``held-out``, ``crowded`` or ``small``.
        count: Number of scenes.
        seed: :data:`BENCHMARK_SEED` if None.

    Returns:
        Folder with ``images/``, ``annotations/instances_scenes.json`` and ``annotations/captions_scenes.json``.

    Raises:
        ValueError: as :func:`write_scenes`.
    """
    spec = ScenesSpec(split=split) if seed is None else ScenesSpec(split=split, seed=seed)
    folder = cache_folder() / "scenes" / f"v{VERSION}-{spec.split}-seed{spec.seed}-{count}"
    if not (folder / "annotations" / "scenes.json").is_file():
        try:
            write_scenes(folder, spec.split, count, spec.seed)
        except (OSError, ValueError):
            # Another process may have finished the same folder in the meantime; anything else is an error.
            if not (folder / "annotations" / "scenes.json").is_file():
                raise
    return folder
