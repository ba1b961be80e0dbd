"""POPE's questions: builder and question files (Li et al., EMNLP 2023)."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vlm_guard.eval.data.coco import image_id
from vlm_guard.eval.tasks.chair.text import object_vocabulary
from vlm_guard.untrusted.json_files import as_whole_number, read_records, text_field, whole_number
from vlm_guard.untrusted.printed_text import shown
from vlm_guard.whole_files import write_atomically

Strategy = Literal["random", "popular", "adversarial"]

# How the published runs go on after the question. The name is part of a result: it moves accuracy by points.
SUFFIXES = {
    "none": "",
    "one_word": " Please answer this question with one word.",  # VCD, SHIELD
    "short_phrase": "\nAnswer the question using a single word or phrase.",  # LLaVA-1.5
}

TEMPLATES = ("original", "published")

_QUESTION_TEXT = re.compile(r"Is there an? (?P<object>.+) in the iman?ge\?")


@dataclass(frozen=True, kw_only=True)
class PopeQuestion:
    """One question of POPE.

    Attributes:
        question_id: number within its strategy, from 1.
        image_id: MSCOCO id of the image; None where its name holds no id.
        image: the image's name as the question file gives it.
        text: the question, without suffix.
        label: the right answer, yes or no.
        object: what is asked for; empty where the text is not POPE's.
        strategy: how the absent objects were chosen.
    """

    question_id: int
    image_id: int | None
    image: str
    text: str
    label: str
    object: str
    strategy: str

    def __post_init__(self) -> None:
        if self.label not in ("yes", "no"):
            raise ValueError(f"the label of question {self.question_id} is {self.label!r}; it must be yes or no")

    def to_dict(self) -> dict[str, Any]:
        """The question with the published files' keys, and the two of ours."""
        record = asdict(self)
        del record["image_id"]
        return record


def question_text(name: str, template: str = "original", strategy: str = "random") -> str:
    """POPE's question for an object, "Is there a dog in the image?".

    The template `original` writes "an" before a vowel, as the published MSCOCO files do. `published` also keeps the
    typo "imange" that the builder's code made of such questions and that survives in the widely used adversarial
    file (in 57 of its 58 "an" questions: all but question 689).

    Raises:
        ValueError: the template is unknown.
    """
    if template not in TEMPLATES:
        raise ValueError(f"the POPE template is {template!r}; it must be one of {', '.join(TEMPLATES)}")
    vowel = name[:1] in tuple("aeiou")
    image = "imange" if vowel and template == "published" and strategy == "adversarial" else "image"
    return f"Is there {'an' if vowel else 'a'} {name} in the {image}?"


def with_suffix(text: str, suffix: str = "none") -> str:
    """A question with one of the suffixes of `SUFFIXES`, by name.

    Raises:
        ValueError: the name is unknown.
    """
    if suffix not in SUFFIXES:
        raise ValueError(f"the question suffix is {suffix!r}; it must be one of {', '.join(SUFFIXES)}")
    return text + SUFFIXES[suffix]


@dataclass(frozen=True, kw_only=True)
class ObjectStatistics:
    """What the choice of absent objects is based on.

    Attributes:
        counts: in how many images each object is, in the order the objects are first seen.
        companions: for every object the others it shares images with, most frequent first, ties by first seen.
    """

    counts: dict[str, int]
    companions: dict[str, list[str]]

    @property
    def by_count(self) -> list[str]:
        """All objects, most frequent first, ties by first seen."""
        return sorted(self.counts, key=self.counts.__getitem__, reverse=True)


def object_statistics(objects: Iterable[Sequence[str]]) -> ObjectStatistics:
    """Count objects and pairs of objects over images, each given by its object list in first-seen order."""
    counts: Counter[str] = Counter()
    pairs: dict[str, Counter[str]] = {}
    for names in objects:
        counts.update(names)
        for name in names:
            pairs.setdefault(name, Counter()).update(other for other in names if other != name)
    # Counter.most_common is stable, so objects with equal counts stay in the order they were first seen.
    companions = {name: [other for other, _ in found.most_common()] for name, found in pairs.items()}
    return ObjectStatistics(counts=dict(counts), companions=companions)


def sample_images(
    objects: Mapping[int, Sequence[str]], count: int = 500, minimum: int = 3, seed: int = 0
) -> dict[int, Sequence[str]]:
    """Draw the images POPE asks about: `count` of those with at least `minimum` objects, in random order.

    Raises:
        ValueError: too few images have that many objects.
    """
    eligible = sorted(number for number, names in objects.items() if len(names) >= minimum)
    if len(eligible) < count:
        raise ValueError(f"{count} images were asked for, but only {len(eligible)} have at least {minimum} objects")
    return {number: objects[number] for number in random.Random(seed).sample(eligible, count)}


def _negative(
    strategy: str,
    positive: str,
    excluded: Sequence[str],
    statistics: ObjectStatistics,
    generator: random.Random,
) -> str | None:
    """An object that is neither in the image nor asked before, or None when there is none.

    The published builder knows only objects of the images it asks about and never ends when those are used up, as
    they may be for a handful of images. Then the rest of the 80 categories is drawn from, if the objects are theirs.
    """
    ranked: Sequence[str] = ()
    if strategy == "popular":
        ranked = statistics.by_count
    elif strategy == "adversarial":
        ranked = statistics.companions[positive]
    for name in ranked:
        if name not in excluded:
            return name
    admissible = [name for name in statistics.counts if name not in excluded]
    categories = object_vocabulary().categories
    if not admissible and statistics.counts.keys() <= set(categories):
        admissible = [name for name in categories if name not in excluded]
    return generator.choice(admissible) if admissible else None


def build_questions(
    objects: Mapping[int, Sequence[str]],
    strategies: Sequence[str] = get_args(Strategy),
    per_image: int = 6,
    seed: int = 0,
    template: str = "original",
    *,
    image_names: Mapping[int, str] | None = None,
) -> list[PopeQuestion]:
    """POPE's questions about a set of images, half of them about objects that are there.

    For every image with at least `per_image / 2` objects the first of them are asked about in turn (yes), each
    followed by one that is not in the image (no): at random, the most frequent of all images (popular), or the most
    frequent beside the object just asked about (adversarial). Popular and adversarial fall back to random when no
    object is left. Frequencies are those of the images that are asked about.

    Args:
        objects: the objects of every image, in the order they are first seen
            (`vlm_guard.eval.data.coco.object_sets`); draw the images before with `sample_images`.
        strategies: which of random, popular and adversarial to build, in this order.
        per_image: number of questions per image and strategy, even; 6 in the published files.
        seed: for the random choices. The published files' draws cannot be repeated, their popular and adversarial
            ones need none.
        template: question text (`question_text`).
        image_names: file name of every image; "COCO_val2014_000000000139.jpg"-style by default.

    Returns:
        All questions, strategy by strategy, numbered from 1 in each.

    Raises:
        ValueError: an argument is out of range, no image has enough objects, or nothing absent is left to ask for
            about an image.
    """
    for strategy in strategies:
        if strategy not in get_args(Strategy):
            raise ValueError(f"the strategy is {strategy!r}; it must be one of {', '.join(get_args(Strategy))}")
    if per_image < 2 or per_image % 2:
        raise ValueError(f"per_image is {per_image}; it must be even and at least 2 (half the answers are yes)")
    asked = {number: list(names) for number, names in objects.items() if len(names) >= per_image // 2}
    if not asked:
        raise ValueError(f"none of the {len(objects)} images has the {per_image // 2} objects POPE needs")
    statistics = object_statistics(asked.values())
    questions = []
    for strategy in strategies:
        generator = random.Random(f"{seed}:{strategy}")
        question_id = 0
        for number, names in asked.items():
            image = image_names[number] if image_names is not None else f"COCO_val2014_{number:012d}.jpg"
            chosen: list[tuple[str, str]] = []
            for positive in names[: per_image // 2]:
                excluded = [*names, *(name for name, _ in chosen)]
                negative = _negative(strategy, positive, excluded, statistics, generator)
                if negative is None:
                    raise ValueError(
                        f"image {number} has, or was already asked about, all {len(statistics.counts)} objects of the "
                        "data; ask fewer questions per image or use more varied images"
                    )
                chosen += [(positive, "yes"), (negative, "no")]
            for name, label in chosen:
                question_id += 1
                questions.append(
                    PopeQuestion(
                        question_id=question_id,
                        image_id=number,
                        image=image,
                        text=question_text(name, template, strategy),
                        label=label,
                        object=name,
                        strategy=strategy,
                    )
                )
    return questions


def write_questions(questions: Iterable[PopeQuestion], path: str | Path) -> None:
    """Write questions as JSONL with the published files' keys (and `object`, `strategy`)."""
    lines = [json.dumps(question.to_dict(), ensure_ascii=False) + "\n" for question in questions]
    write_atomically(Path(path), "".join(lines))


def _strategy_of(path: Path) -> str:
    named = [strategy for strategy in get_args(Strategy) if strategy in path.name.lower()]
    return named[0] if len(named) == 1 else "unknown"


def read_questions(path: str | Path, strategy: str | None = None) -> list[PopeQuestion]:
    """Questions from a published POPE file (JSONL, or one JSON list), of MSCOCO, A-OKVQA or GQA.

    Args:
        path: file with the keys question_id, image, text (or query), label; one of `write_questions` also has its
            strategy.
        strategy: name of the strategy for all questions; by default the record's, or the one in the file's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is incomplete or of wrong types, a question stands twice, or the file is empty.
    """
    path = Path(path)
    questions: list[PopeQuestion] = []
    seen: set[tuple[str, int]] = set()
    for number, record in read_records(path):
        where = f"{path}: record {number}"
        question = _read_question(record, where, strategy or None, _strategy_of(path))
        key = (question.strategy, question.question_id)
        if key in seen:
            raise ValueError(f"{where} is question {key[1]} ({shown(key[0])}), which stands in the file before")
        seen.add(key)
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} has no questions")
    return questions


def _read_question(record: dict[str, Any], where: str, strategy: str | None, usual_strategy: str) -> PopeQuestion:
    text_key = "query" if "query" in record and "text" not in record else "text"
    if missing := [key for key in ("question_id", "image", text_key, "label") if key not in record]:
        raise ValueError(f"{where} has no {', '.join(missing)}; is it a POPE question file?")
    number = None if isinstance(record["image"], str) else as_whole_number(record["image"])
    image = text_field(record, "image", where) if number is None else str(number)
    try:
        pictured = image_id(record["image"])
    except ValueError:
        pictured = None
    text = text_field(record, text_key, where)
    label = text_field(record, "label", where).strip().lower()
    if label not in ("yes", "no"):
        raise ValueError(f"{where}: the label is {shown(record['label'])}; it must be yes or no")
    match = _QUESTION_TEXT.fullmatch(text)
    asked = text_field(record, "object", where, optional=True)
    return PopeQuestion(
        question_id=whole_number(record["question_id"], "question_id", where),
        image_id=pictured,
        image=image,
        text=text,
        label=label,
        object=asked or (match["object"] if match else ""),
        strategy=strategy or text_field(record, "strategy", where, optional=True) or usual_strategy,
    )
