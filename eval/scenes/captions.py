"""English descriptions of a scene: detailed, brief, and a plain list. A caption never names a category twice."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_guard.eval.scenes.categories import NAMES, plural, with_article
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import SIZE, SceneObject
from vlm_guard.eval.scenes.world import SCENE_TYPES

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

_OPENERS = (
    "The image shows {place} with {list}.",
    "The image features {place} with {list}.",
    "This is {place} with {list}.",
    "In the image, there is {place} with {list}.",
    "The picture shows {list} in {place}.",
)
_CLOSERS = (
    "The scene looks like a typical {name}.",
    "The overall atmosphere is calm.",
    "The objects are spread across the image.",
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """All visible objects of one category: how many, the mean horizontal middle in pixels, the largest area."""

    category: int
    count: int
    middle: float
    area: int

    @property
    def phrase(self) -> str:
        """``a dog``, ``two dogs``."""
        name = NAMES[self.category]
        return with_article(name) if self.count == 1 else f"{NUMBERS[min(self.count, 6)]} {plural(name)}"

    @property
    def side(self) -> str:
        """``left`` or ``right``."""
        return "left" if self.middle < SIZE / 2 else "right"

    @property
    def verb(self) -> str:
        """``is`` or ``are``."""
        return "are" if self.count > 1 else "is"


def groups(objects: list[SceneObject] | tuple[SceneObject, ...]) -> list[Group]:
    """The visible categories with their counts, in the order of their first object."""
    members: dict[int, list[SceneObject]] = {}
    for item in objects:
        members.setdefault(item.category, []).append(item)
    return [
        Group(
            category=category,
            count=len(items),
            middle=sum(item.center for item in items) / (2 * len(items)),
            area=max(item.area for item in items),
        )
        for category, items in members.items()
    ]


def join(phrases: list[str]) -> str:
    """``a``; ``a and b``; ``a, b and c``."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def place_phrase(scene_type: int) -> str:
    """``a kitchen``, ``an airport``."""
    return with_article(SCENE_TYPES[scene_type].name)


def _large_first(draws: Draws, objects: list[SceneObject]) -> list[Group]:
    """Groups by falling size, with some disorder, as people describe what strikes them first."""
    return sorted(groups(objects), key=lambda group: -group.area * draws.between(80, 125))


def detailed_caption(draws: Draws, scene_type: int, objects: list[SceneObject]) -> str:
    """Several sentences that name every visible category once."""
    if not objects:
        return f"The image shows an empty {SCENE_TYPES[scene_type].name}."
    ordered = _large_first(draws, objects)
    count = min(len(ordered), draws.choice((2, 2, 3)))
    opening = draws.choice(_OPENERS)
    sentences = [opening.format(place=place_phrase(scene_type), list=join([group.phrase for group in ordered[:count]]))]
    rest = ordered[count:]
    while rest:
        count = min(len(rest), draws.choice((1, 1, 2)))
        listed = join([group.phrase for group in rest[:count]])
        verb = "are" if count > 1 else rest[0].verb
        form = draws.below(4)
        if form == 0 and count == 1:
            sentences.append(f"On the {rest[0].side} side of the image, there {verb} {listed}.")
        elif form <= 1:
            sentences.append(f"There {rest[0].verb} also {listed} in the scene.")
        elif form == 2:
            sentences.append(f"In the background, {listed} can be seen.")
        else:
            sentences.append(f"Additionally, {listed} {verb} visible.")
        rest = rest[count:]
    if draws.chance(25):
        sentences.append(draws.choice(_CLOSERS).format(name=SCENE_TYPES[scene_type].name))
    return " ".join(sentences)


def brief_caption(draws: Draws, scene_type: int, objects: list[SceneObject]) -> str:
    """One sentence with at most three categories."""
    if not objects:
        return f"An empty {SCENE_TYPES[scene_type].name}."
    listed = join([group.phrase for group in _large_first(draws, objects)[: draws.choice((2, 3))]])
    return f"{listed[0].upper()}{listed[1:]} in {place_phrase(scene_type)}."


def list_caption(draws: Draws, objects: list[SceneObject]) -> str:
    """One sentence that lists every visible category."""
    if not objects:
        return "There is nothing in the image."
    ordered = _large_first(draws, objects)
    return f"There {ordered[0].verb} {join([group.phrase for group in ordered])} in the image."
