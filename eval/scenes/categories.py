"""MSCOCO's 80 object categories: names, official ids, super-categories, and the English needed to talk about them."""

from __future__ import annotations

_TABLE = """
person 1: person
vehicle 2: bicycle, car, motorcycle, airplane, bus, train, truck, boat
outdoor 10: traffic light, fire hydrant
outdoor 13: stop sign, parking meter, bench
animal 16: bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe
accessory 27: backpack, umbrella
accessory 31: handbag, tie, suitcase
sports 34: frisbee, skis, snowboard, sports ball, kite, baseball bat
sports 40: baseball glove, skateboard, surfboard, tennis racket
kitchen 44: bottle
kitchen 46: wine glass, cup, fork, knife, spoon, bowl
food 52: banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake
furniture 62: chair, couch, potted plant, bed
furniture 67: dining table
furniture 70: toilet
electronic 72: tv, laptop, mouse, remote, keyboard, cell phone
appliance 78: microwave, oven, toaster, sink, refrigerator
indoor 84: book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""


def _read_table() -> list[tuple[str, int, str]]:
    """Rows of ``(name, official id, super-category)``; ids run on from the first of each line."""
    rows = []
    for line in _TABLE.strip().splitlines():
        head, names = line.split(": ")
        supercategory, first = head.split()
        rows += [(name, int(first) + k, supercategory) for k, name in enumerate(names.split(", "))]
    return rows


_ROWS = _read_table()

NAMES: tuple[str, ...] = tuple(name for name, _, _ in _ROWS)
"""The 80 names in the official order; a category's index in the scenes code is its place here."""

COCO_IDS: tuple[int, ...] = tuple(number for _, number, _ in _ROWS)
"""Official MSCOCO category ids (1 to 90 with gaps), aligned with :data:`NAMES`."""

SUPERCATEGORIES: tuple[str, ...] = tuple(group for _, _, group in _ROWS)
"""MSCOCO's super-category of each category, aligned with :data:`NAMES`."""

INDEX: dict[str, int] = {name: k for k, name in enumerate(NAMES)}
"""Category name to index."""

_PLURALS = {
    "person": "people",
    "bus": "buses",
    "bench": "benches",
    "sheep": "sheep",
    "skis": "pairs of skis",
    "wine glass": "wine glasses",
    "knife": "knives",
    "sandwich": "sandwiches",
    "couch": "couches",
    "mouse": "mice",
    "scissors": "pairs of scissors",
    "toothbrush": "toothbrushes",
    "broccoli": "pieces of broccoli",
}
_SINGULARS = {"skis": "a pair of skis", "scissors": "a pair of scissors", "broccoli": "a piece of broccoli"}


def with_article(name: str) -> str:
    """``dog`` becomes ``a dog``, ``apple`` becomes ``an apple``, ``skis`` becomes ``a pair of skis``."""
    return _SINGULARS.get(name) or f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """The plural used by the scenes' captions, for example ``people`` or ``pairs of skis``."""
    return _PLURALS.get(name, f"{name}s")
