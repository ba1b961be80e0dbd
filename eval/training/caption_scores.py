"""Which objects a caption of the built-in model names, and how that compares with what is there.

For choosing a checkpoint and describing its behaviour only: captions speak the scenes' own English, so names and
plurals are enough. Benchmarks use :mod:`vlm_guard.eval.tasks.chair.scoring`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlm_guard.eval.scenes.categories import INDEX, NAMES, plural
from vlm_guard.eval.scenes.render import Scene
from vlm_guard.eval.scenes.world import SCENE_TYPES

_FORMS = {form: INDEX[name] for name in NAMES for form in (name, plural(name))}
# Longest first, so that "hot dog" is not a dog and "teddy bear" is not a bear.
_PATTERN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _FORMS), key=len, reverse=True)) + r")\b", re.I)


def mentions(caption: str) -> list[int]:
    """Category indices in the order they are named, with repetitions."""
    return [_FORMS[word.lower()] for word in _PATTERN.findall(caption)]


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def score_captions(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, Any]:
    """CHAIR-like percentages of captions against their scenes.

    Returns:
        ``chair_i`` and ``chair_s``, ``recall``, ``repeated`` (mentions of a category the caption named before, in
        percent of mentions), ``words`` per caption, ``own_pool`` (hallucinated mentions that belong to the scene's
        type, in percent of them), ``chance_pool`` (the same for a random absent category), and
        ``hallucinated_by_order``, the percentage among first, second, third, and later mentions.
    """
    hallucinated = named = repeated = found = there = flawed = words = in_pool = 0
    chance = 0.0
    by_order = [[0, 0] for _ in range(4)]
    for caption, scene in zip(captions, scenes):
        present, all_mentions = scene.present, mentions(caption)
        distinct = list(dict.fromkeys(all_mentions))
        wrong = [category for category in distinct if category not in present]
        pool = {INDEX[name] for name in SCENE_TYPES[scene.scene_type].pool}
        hallucinated += len(wrong)
        flawed += bool(wrong)
        named += len(distinct)
        repeated += len(all_mentions) - len(distinct)
        found += len(present & set(distinct))
        there += len(present)
        words += len(caption.split())
        in_pool += sum(category in pool for category in wrong)
        chance += len(wrong) * len(pool - present) / (len(NAMES) - len(present))
        for order, category in enumerate(distinct):
            entry = by_order[min(order, 3)]
            entry[0] += category not in present
            entry[1] += 1
    return {
        "captions": len(captions),
        "chair_i": _percent(hallucinated, named),
        "chair_s": _percent(flawed, len(captions)),
        "recall": _percent(found, there),
        "repeated": _percent(repeated, named + repeated),
        "words": round(words / len(captions), 1),
        "own_pool": _percent(in_pool, hallucinated),
        "chance_pool": round(100 * chance / hallucinated, 2) if hallucinated else 0.0,
        "hallucinated_by_order": [_percent(wrong, total) for wrong, total in by_order],
    }
