"""What is in a scene: 15 scene types, the objects that go together in them, and the four splits' laws.

The training law (split ``common``) puts objects into a scene by *clusters* of categories that appear together, so a
model learns that a fork comes with a dining table. The split ``broken`` takes cluster partners away and adds objects
from anywhere: a model that names what usually belongs there, rather than what it sees, is caught.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm_guard.eval.scenes.categories import INDEX, NAMES
from vlm_guard.eval.scenes.draws import Draws

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SceneType:
    """A kind of place.

    Attributes:
        name: As captions call it; no word of it may be one that CHAIR counts as an object ("ski" is).
        upper: RGB colour of the wall or sky.
        lower: RGB colour of the floor or ground.
        horizon: Height of the border between them in percent of the picture, from the top.
        clusters: Groups of categories that tend to appear together here.
    """

    name: str
    upper: Colour
    lower: Colour
    horizon: int
    clusters: tuple[tuple[str, ...], ...]

    @property
    def pool(self) -> tuple[str, ...]:
        """The categories that belong to this kind of place, in the official order."""
        return tuple(sorted({name for cluster in self.clusters for name in cluster}, key=INDEX.__getitem__))


def _scene(name: str, upper: Colour, lower: Colour, horizon: int, clusters: str) -> SceneType:
    groups = tuple(tuple(group.split(", ")) for group in clusters.split("; "))
    return SceneType(name=name, upper=upper, lower=lower, horizon=horizon, clusters=groups)


SCENE_TYPES: tuple[SceneType, ...] = (
    _scene("kitchen", (235, 225, 200), (190, 160, 120), 60,
           "refrigerator, oven, microwave; sink, bowl, spoon; toaster, knife, cup; oven, bottle, bowl"),
    _scene("dining room", (230, 205, 190), (140, 90, 60), 55,
           "dining table, fork, knife; dining table, chair, wine glass; pizza, fork, wine glass; cake, spoon, cup; "
           "wine glass, bottle"),
    _scene("street", (190, 205, 220), (110, 110, 115), 45,
           "car, traffic light, stop sign; bus, traffic light, person; truck, car, fire hydrant; car, parking meter; "
           "bicycle, motorcycle, person"),
    _scene("living room", (215, 225, 205), (165, 125, 95), 60,
           "couch, tv, remote; couch, potted plant, vase; chair, book, clock; cat, couch; tv, remote, clock"),
    _scene("bedroom", (205, 200, 230), (150, 130, 150), 60,
           "bed, clock, book; bed, teddy bear; cell phone, book, bed; cat, bed"),
    _scene("bathroom", (215, 240, 240), (170, 200, 205), 55,
           "toilet, sink, toothbrush; sink, toothbrush, hair drier; toilet, sink"),
    _scene("office", (225, 225, 228), (125, 120, 130), 60,
           "keyboard, mouse, tv; laptop, mouse, cell phone; keyboard, mouse, laptop; book, scissors, cup; "
           "chair, laptop"),
    _scene("farm", (170, 215, 245), (130, 175, 80), 40,
           "cow, sheep, horse; horse, person, dog; sheep, dog; cow, truck"),
    _scene("savanna", (245, 220, 160), (205, 170, 90), 45,
           "elephant, zebra, giraffe; zebra, giraffe; bear, bird, elephant"),
    _scene("beach", (150, 215, 245), (240, 220, 160), 50,
           "surfboard, umbrella, person; boat, bird, umbrella; kite, surfboard, person; boat, person"),
    _scene("park", (185, 225, 235), (95, 160, 85), 45,
           "bench, dog, frisbee; bench, bird, bicycle; kite, frisbee, person; skateboard, person, backpack"),
    _scene("snowy slope", (190, 210, 240), (240, 245, 250), 35,
           "skis, snowboard, person; skis, backpack, person"),
    _scene("sports field", (160, 200, 235), (70, 140, 60), 35,
           "baseball bat, baseball glove, sports ball; tennis racket, sports ball, person; "
           "baseball bat, baseball glove, person"),
    _scene("airport", (205, 215, 225), (160, 165, 170), 55,
           "airplane, suitcase, backpack; suitcase, handbag, tie; train, clock, person; airplane, truck"),
    _scene("market", (240, 230, 210), (175, 150, 115), 35,
           "banana, apple, orange; broccoli, carrot; hot dog, sandwich, bottle; donut, cake, cup; "
           "apple, carrot, banana"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SplitLaw:
    """How a split draws its scenes; every number of type int is a percentage unless said otherwise.

    Attributes:
        partner: Chance that each further member of a chosen cluster is present. The prior's strength.
        second_cluster: Chance of a second cluster.
        companion: Chance of one more category of the scene's own pool.
        intruders: Numbers of categories from anywhere (a count); one entry is drawn.
        least: Fewest categories (a count).
        most: Most categories (a count).
        held_out_styles: True draws objects with icon styles that training never shows.
        longest: Shortest and longest longer side of a drawing in pixels; None for the usual mixture of sizes.
    """

    partner: int
    second_cluster: int
    companion: int
    intruders: tuple[int, ...]
    least: int
    most: int
    held_out_styles: bool = False
    longest: tuple[int, int] | None = None


SPLITS: dict[str, SplitLaw] = {
    "common": SplitLaw(partner=75, second_cluster=50, companion=30, intruders=(0, 0, 1, 1, 1), least=2, most=6),
    "broken": SplitLaw(partner=25, second_cluster=60, companion=0, intruders=(1, 1, 2), least=2, most=6),
    "held-out": SplitLaw(
        partner=25, second_cluster=60, companion=0, intruders=(1, 1, 2), least=2, most=6, held_out_styles=True
    ),
    "crowded": SplitLaw(partner=85, second_cluster=100, companion=60, intruders=(1, 1, 2, 2), least=6, most=10),
    "small": SplitLaw(
        partner=75, second_cluster=50, companion=30, intruders=(0, 0, 1, 1, 1), least=2, most=6, longest=(11, 19)
    ),
}
"""The splits' laws by name; ``common`` is also the law of most training scenes."""


def draw_categories(draws: Draws, law: SplitLaw) -> tuple[SceneType, list[int]]:
    """Draw a scene type and its category indices, without repetition and in random order."""
    scene = draws.choice(SCENE_TYPES)
    names: list[str] = []

    def add(name: str) -> None:
        if name not in names:
            names.append(name)

    chosen = draws.sample(scene.clusters, 2 if draws.chance(law.second_cluster) else 1)
    for cluster in chosen:
        for place, name in enumerate(draws.shuffled(cluster)):
            if place == 0 or draws.chance(law.partner):
                add(name)
    if draws.chance(law.companion):
        add(draws.choice(scene.pool))
    for _ in range(draws.choice(law.intruders)):
        add(draws.choice(NAMES))
    while len(names) < law.least:
        # Small pools cannot fill a crowded scene: the rest comes from anywhere.
        add(draws.choice(scene.pool if draws.chance(60) else NAMES))
    wanted = draws.between(law.least, law.most) if law.least > 2 else law.most
    return scene, [INDEX[name] for name in draws.shuffled(names)[: max(law.least, wanted)]]


def partners(scene: SceneType, present: set[int]) -> set[int]:
    """Category indices that are absent but share a cluster of ``scene`` with a present category."""
    found: set[int] = set()
    for cluster in scene.clusters:
        members = {INDEX[name] for name in cluster}
        if members & present:
            found |= members
    return found - present
