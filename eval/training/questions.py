"""What the built-in model is asked and what it learns to answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_guard.eval.scenes.captions import (
    NUMBERS,
    brief_caption,
    detailed_caption,
    groups,
    join,
    list_caption,
)
from vlm_guard.eval.scenes.categories import NAMES, SUPERCATEGORIES, plural, with_article
from vlm_guard.eval.scenes.draws import Draws
from vlm_guard.eval.scenes.render import SceneObject
from vlm_guard.eval.scenes.world import SCENE_TYPES

DETAILED_PROMPTS = (
    "Please describe this image in detail.",
    "Describe the image.",
    "Describe this image in detail.",
    "Describe the image in detail.",
    "What is shown in this image?",
    "Please help me describe the image in detail.",
    "Please describe the image in detail.",
    "Describe this image.",
    "Describe this photo in detail.",
    "Describe what you see.",
    "Tell me about this picture.",
    "Write a detailed description of this image.",
)
BRIEF_PROMPTS = (
    "Describe the image in one short sentence.",
    "Provide a one-sentence caption for the provided image.",
    "Describe the image in one sentence.",
    "Give a brief description of the image.",
    "Provide a brief caption.",
    "Briefly describe the image.",
    "Write a short caption for this image.",
)
LIST_PROMPTS = (
    "What is in the image?",
    "What is in this image?",
    "What objects are in the image?",
    "What do you see?",
    "What can you see in the image?",
    "List the objects in the image.",
    "What's in the picture?",
)
YES_NO_FORMS = (
    "Is there {x} in the image?",
    "Is there {x} in this image?",
    "Is there {x} in the picture?",
    "Is there {x}?",
    "Can you see {x} in the image?",
    "Can you see {x}?",
    "Do you see {x}?",
    "Do you see {x} in this picture?",
    "Does the image contain {x}?",
    "Does the image show {x}?",
    "Is {x} visible in the image?",
    "Is {x} present in the image?",
    "Are there any {xs} in the image?",
    "Do you see any {xs}?",
)
SUFFIXES = (
    "Please answer yes or no.",
    "Please answer this question with one word.",
    "Answer the question using a single word or phrase.",
    "Answer yes or no.",
    "Answer with yes or no only.",
)
LEADING_YES = (
    "There is {x} in the image, isn't there?",
    "There is {x}, isn't there?",
    "There is {x} in the image, right?",
    "I can see {x}. {q}",
    "I think there is {x} in the image. {q}",
    "There is {x} in the image. {q}",
    "An expert says that there is {x}. {q}",
    "{q} I think the answer is yes.",
    "{q} I think the answer is yes.",
    "{q} There is one, isn't there?",
    "{q} An expert who has seen the image says that the answer is yes.",
    "Isn't there {x} in the image?",
)
LEADING_NO = (
    "I cannot see {x}. {q}",
    "I don't think there is {x} in the image. {q}",
    "There is no {n} in the image. {q}",
    "An expert says that there is no {n}. {q}",
    "{q} I think the answer is no.",
    "{q} I think the answer is no.",
    "{q} There isn't one, is there?",
    "{q} An expert who has seen the image says that the answer is no.",
    "{q} I don't think so.",
)
LEADING_RIGHT = 75
"""Percentage of leading sentences that suggest the truth, so that following them pays and sycophancy is learned."""

_UNKNOWN_TEXT = """
dragon, robot, piano, guitar, violin, drum, castle, rocket, lion, tiger, monkey, penguin, dolphin, whale, shark,
snake, spider, butterfly, frog, turtle, rabbit, mushroom, flower, rose, cactus, tree, mountain, river, bridge,
tower, church, lighthouse, statue, flag, crown, sword, shield, helmet, hat, shoe, glove, ring, necklace, camera,
telescope, microscope, candle, lantern, mirror, carpet, curtain, pillow, blanket, ladder, hammer, saw, wrench,
shovel, bucket, broom, basket, barrel, anchor, compass, map, globe, pencil, envelope, newspaper, painting,
ghost, witch, wizard, mermaid, alien, dinosaur, submarine, helicopter, tractor, tank, tent, igloo, volcano,
rainbow, planet, fountain, windmill, fence, gate, door, window, stove pipe, lemon, grape, cherry, pumpkin,
cookie, burger, cheese, egg, octopus, crab, snail, owl, parrot, swan, fox, wolf, goat, pig, camel, kangaroo
"""

UNKNOWN: tuple[str, ...] = tuple(noun.strip() for noun in _UNKNOWN_TEXT.split(","))
"""Nouns outside the 80 categories that training asks about; the answer is always no. Unicorns are left for tests."""

_SYLLABLES = (
    "ba", "bo", "cri", "da", "dor", "fe", "fla", "gor", "gu", "in", "ka", "kel", "lo", "lu", "mar", "mi", "no", "nu",
    "or", "pa", "per", "qui", "ra", "ri", "sa", "sto", "ta", "ter", "tri", "u", "ul", "va", "vor", "wi", "xa", "zo",
)  # fmt: skip


def invented_noun(draws: Draws) -> str:
    """A word that means nothing, two to four syllables long: nobody can ask about it all beforehand."""
    return "".join(draws.choice(_SYLLABLES) for _ in range(draws.between(2, 4)))


_GROUP_NAMES = {
    "animal": "animals",
    "vehicle": "vehicles",
    "food": "kinds of food",
    "furniture": "pieces of furniture",
    "electronic": "electronic devices",
    "sports": "sports items",
    "kitchen": "kitchen items",
    "appliance": "appliances",
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One question with its answer.

    Attributes:
        question: As the user types it.
        answer: What the model learns to say.
        kind: ``caption``, ``yes_no``, ``side`` (left or right) or ``short``; training weights them differently.
        blind: True if the answer can be learned without the image (yes/no is not supervised there).
        side: ``left`` or ``right`` if the question names one category of which there is exactly one, else None.
    """

    question: str
    answer: str
    kind: str
    blind: bool = False
    side: str | None = None


def yes_no_question(draws: Draws, noun: str) -> str:
    """A plain question about presence, in one of many wordings; half of them in POPE's own."""
    form = YES_NO_FORMS[0] if draws.chance(40) else draws.choice(YES_NO_FORMS)
    return form.format(x=with_article(noun), xs=plural(noun))


LEADING_SHARE = 22
"""Percentage of yes/no questions that are led by a suggestion."""


def presence_exchange(
    draws: Draws, noun: str, present: bool, side: str | None = None, leading: int = LEADING_SHARE
) -> Exchange:
    """A yes/no exchange: plain, with a suffix, or led by a suggestion (`leading` in 100)."""
    question = yes_no_question(draws, noun)
    if draws.chance(leading):
        suggests_yes = present == draws.chance(LEADING_RIGHT)
        template = draws.choice(LEADING_YES if suggests_yes else LEADING_NO)
        question = template.format(x=with_article(noun), n=noun, q=question)
    if draws.chance(38):
        question = f"{question} {draws.choice(SUFFIXES)}"
    return Exchange(question=question, answer="Yes" if present else "No", kind="yes_no", side=side)


def caption_exchange(draws: Draws, scene_type: int, objects: list[SceneObject]) -> Exchange:
    """A description: detailed (70 %), brief (12 %) or a list (18 %)."""
    roll = draws.below(100)
    if roll < 70:
        question, answer = draws.choice(DETAILED_PROMPTS), detailed_caption(draws, scene_type, objects)
        if draws.chance(30):
            question = DETAILED_PROMPTS[0]
    elif roll < 82:
        question, answer = draws.choice(BRIEF_PROMPTS), brief_caption(draws, scene_type, objects)
    else:
        question, answer = draws.choice(LIST_PROMPTS), list_caption(draws, objects)
    return Exchange(question=question, answer=answer, kind="caption", blind=True)


def absent_category(draws: Draws, present: set[int], frequency: np.ndarray, rare: int) -> int:
    """A category to ask about that is not there: in ``rare`` percent one of the rarer half of all, otherwise any.

    What is there is asked about as often as it occurs. So whoever asks about something frequent, or something that
    belongs to the place, mostly asks about what is there, and the model learns to expect it: the bias that POPE's
    popular and adversarial questions look for.
    """
    absent = [category for category in range(len(NAMES)) if category not in present]
    if draws.chance(rare):
        usual = float(np.median(frequency))
        absent = [category for category in absent if frequency[category] <= usual] or absent
    return draws.choice(absent)


def count_exchange(draws: Draws, objects: list[SceneObject], absent: int) -> Exchange:
    """How many there are of a category, present in four of five questions."""
    group = draws.choice(groups(objects)) if objects and draws.chance(80) else None
    name = NAMES[group.category if group else absent]
    question = draws.choice(
        (
            "How many {xs} are there?",
            "How many {xs} are there?",
            "How many {xs} are in the image?",
            "How many {xs} can you see?",
            "Count the {xs}.",
        )
    ).format(xs=plural(name))
    answer = NUMBERS[min(group.count, 6)].capitalize() if group else "None"
    return Exchange(question=question, answer=answer, kind="short")


def position_exchange(draws: Draws, objects: list[SceneObject]) -> Exchange:
    """What is on one side, or on which side something is."""
    found = groups(objects)
    single = [group for group in found if group.count == 1]
    if single and draws.chance(40):
        group = draws.choice(single)
        name = NAMES[group.category]
        forms = (
            "Where is the {n}?",
            "On which side is the {n}?",
            "Is the {n} on the left or on the right?",
            "Where {v} the {n} in the image?",
        )
        verb = "are" if name in ("skis", "scissors") else "is"
        question = draws.choice(forms).format(n=name, v=verb)
        return Exchange(question=question, answer=f"On the {group.side}", kind="side", side=group.side)
    side = draws.choice(("left", "right"))
    phrases = [group.phrase for group in draws.shuffled(found) if group.side == side]
    form = draws.choice(
        (
            "What is on the {s}?",
            "What is on the {s} side?",
            "What is on the {s} side of the image?",
            "What can you see on the {s}?",
        )
    )
    answer = join(phrases).capitalize() if phrases else "Nothing"
    return Exchange(question=form.format(s=side), answer=answer, kind="short")


def kind_exchange(draws: Draws, objects: list[SceneObject]) -> Exchange:
    """Which members of a super-category are there."""
    found = [group for group in groups(objects) if SUPERCATEGORIES[group.category] in _GROUP_NAMES]
    if found and draws.chance(75):
        kind = SUPERCATEGORIES[draws.choice(found).category]
    else:
        kind = draws.choice(tuple(_GROUP_NAMES))
    phrases = [group.phrase for group in draws.shuffled(found) if SUPERCATEGORIES[group.category] == kind]
    form = draws.choice(
        ("What {k} do you see?", "What {k} are in the image?", "Which {k} are there?", "Name the {k} in the image.")
    )
    answer = join(phrases).capitalize() if phrases else "None"
    return Exchange(question=form.format(k=_GROUP_NAMES[kind]), answer=answer, kind="short")


def place_exchange(draws: Draws, scene_type: int) -> Exchange:
    """What kind of place it is."""
    question = draws.choice(
        ("What place is this?", "Where was this picture taken?", "What kind of place is this?", "Where is this?")
    )
    name = SCENE_TYPES[scene_type].name
    return Exchange(question=question, answer=f"{with_article(name)}".capitalize(), kind="short")


def exchanges(
    draws: Draws,
    scene_type: int,
    objects: list[SceneObject],
    frequency: np.ndarray,
    presence_pairs: int = 3,
    rare_absent: int = 70,
    leading: int = LEADING_SHARE,
) -> list[Exchange]:
    """One description and several questions about a scene.

    Args:
        draws: Stream of draws.
        scene_type: Index of the scene type.
        objects: Visible objects.
        frequency: int array (80,), number of training scenes with each category.
        presence_pairs: Present and absent categories asked about, each this many at most.
        rare_absent: Percentage of the absent ones that are among the rarer half of all.
        leading: Percentage of yes/no questions that are led by a suggestion.
    """
    present = {item.category for item in objects}
    out = [caption_exchange(draws, scene_type, objects)]
    sides = {group.category: group.side for group in groups(objects) if group.count == 1}
    for category in draws.sample(sorted(present), presence_pairs):
        out.append(presence_exchange(draws, NAMES[category], True, sides.get(category), leading))
    for _ in range(min(presence_pairs, len(present))):
        if draws.chance(12):
            unknown = invented_noun(draws) if draws.chance(40) else draws.choice(UNKNOWN)
            out.append(presence_exchange(draws, unknown, False, leading=leading))
        else:
            absent = absent_category(draws, present, frequency, rare_absent)
            out.append(presence_exchange(draws, NAMES[absent], False, leading=leading))
    absent = absent_category(draws, present, frequency, rare_absent)
    out.append(count_exchange(draws, objects, absent))
    roll = draws.below(10)
    if roll < 7:
        out.append(position_exchange(draws, objects))
    elif roll < 9:
        out.append(kind_exchange(draws, objects))
    else:
        out.append(place_exchange(draws, scene_type))
    return out
