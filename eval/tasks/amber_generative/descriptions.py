"""What AMBER knows of its pictures, and how it scores the nouns of a description (Wang et al., arXiv 2311.07397).

A noun of the closed vocabulary is right if it is one of the picture's objects or may stand for one. Where it is not,
AMBER's script compares the word vectors of a large spaCy model: above 0.8 it is right after all. With such vectors in a
file the numbers are exact; without them CHAIR and Hal are upper bounds, Cover and Cog lower ones, and the other bounds
are counted, too.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlm_guard.eval.data.coco import image_id
from vlm_guard.untrusted.json_files import read_json, read_records, read_text, whole_number
from vlm_guard.untrusted.printed_text import shown

SIMILAR = 0.8
"""Words whose vectors' cosine is above this count as the same, as in AMBER's script."""

Similar = Callable[[str, str], bool]


@dataclass(frozen=True, kw_only=True)
class AmberScene:
    """What a picture of AMBER shows.

    Attributes:
        number: AMBER's number of the description.
        truth: objects in the picture; one may be named twice.
        unlikely: objects that are not there and that models like to name.
    """

    number: int
    truth: tuple[str, ...]
    unlikely: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AmberWords:
    """AMBER's closed vocabulary.

    Attributes:
        stand_for: for every object the words that may stand for it.
        safe: words that are never counted as wrong.
    """

    stand_for: Mapping[str, tuple[str, ...]]
    safe: frozenset[str]

    @cached_property
    def all(self) -> frozenset[str]:
        """Every word that is counted."""
        return frozenset(self.stand_for) | {word for words in self.stand_for.values() for word in words}


def read_words(relation: str | Path, safe: str | Path) -> AmberWords:
    """AMBER's `relation.json` and `safe_words.txt`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the first is no object of lists of words.
    """
    content = read_json(relation)
    if not isinstance(content, dict):
        raise ValueError(f'{relation} must hold an object such as {{"person": ["man", "woman"]}}, not {shown(content)}')
    for word, others in content.items():
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise ValueError(f"{relation}: the entry {shown(word)} must be a list of words, not {shown(others)}")
    lines = read_text(safe).splitlines()
    return AmberWords(
        stand_for={word: tuple(others) for word, others in content.items()},
        safe=frozenset(line.strip() for line in lines if line.strip()),
    )


def read_scenes(queries: str | Path, annotations: str | Path, words: AmberWords) -> dict[int, AmberScene]:
    """The scenes of AMBER's files, by the number in their picture's name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an annotation names an object that the vocabulary does not have, or a record is incomplete.
    """
    scenes: dict[int, AmberScene] = {}
    for number, record in read_records(annotations):
        where = f"{annotations}: record {number}"
        if record.get("type") != "generative":
            continue
        known = whole_number(record.get("id"), "id", where)
        truth, unlikely = (_objects(record, field, where, words) for field in ("truth", "hallu"))
        scenes[known] = AmberScene(number=known, truth=truth, unlikely=unlikely)
    found: dict[int, AmberScene] = {}
    for number, record in read_records(queries):
        where = f"{queries}: record {number}"
        known = whole_number(record.get("id"), "id", where)
        if known in scenes:
            try:
                found[image_id(record.get("image"))] = scenes[known]
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    if not found:
        raise ValueError(f"{annotations} has nothing of the type generative that {queries} asks about")
    return found


def _objects(record: dict[str, Any], field: str, where: str, words: AmberWords) -> tuple[str, ...]:
    """A field of an annotation that lists objects of the vocabulary."""
    value = record.get(field)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{where}: {field!r} is {shown(value)}; it must be a list of words")
    if unknown := [word for word in value if word not in words.stand_for]:
        raise ValueError(f"{where}: {field!r} has {shown(unknown[0])}, which relation.json does not know")
    return tuple(value)


def read_vectors(path: str | Path, words: Collection[str]) -> Similar:
    """Word vectors from a JSON file, an object of lists of numbers, as a comparison of two words.

    A phrase that the file does not have gets the mean of its words' vectors, as spaCy gives it. A vector of zeros is
    similar to nothing but its own word.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one of `words` has no vector, or vectors are no lists of equally many numbers.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold an object such as {{"dog": [0.1, -0.3, ...]}}')
    parts = {word: [word] if word in content else word.split() for word in words}
    if missing := sorted(word for word, split in parts.items() if any(part not in content for part in split)):
        raise ValueError(
            f"{path} lacks the vectors of {len(missing)} of {len(words)} words, for example {shown(missing[0])}; give "
            "zeros for words that the model does not know"
        )
    try:
        rows = {word: np.mean([np.asarray(content[part], float) for part in split], 0) for word, split in parts.items()}
        table = np.stack(list(rows.values()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: vectors must be lists of equally many numbers ({error})") from error
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"{path}: vectors must be lists of numbers")
    length = np.linalg.norm(table, axis=1, keepdims=True)
    unit = np.divide(table, length, out=np.zeros_like(table), where=length > 0)
    close, place = unit @ unit.T > SIMILAR, {word: number for number, word in enumerate(rows)}
    return lambda first, second: first == second or bool(close[place[first], place[second]])


@dataclass(frozen=True, kw_only=True)
class DescriptionCounts:
    """The counts of one description.

    Attributes:
        nouns: nouns of the vocabulary, safe ones among them.
        wrong: nouns that are not in the picture; at most so many without vectors.
        undecided: those of them about which vectors would have to decide; 0 with vectors.
        covered: objects of the picture that are named; at least so many without vectors.
        objects: objects of the picture.
        invented: listed unlikely objects that are named; at least so many without vectors.
        unlikely: listed unlikely objects.
        undecided_words: different words among the undecided nouns: at most so many more are covered or invented.
    """

    nouns: int
    wrong: int
    undecided: int
    covered: int
    objects: int
    invented: int
    unlikely: int
    undecided_words: int


def count_description(
    nouns: Sequence[str], scene: AmberScene, words: AmberWords, similar: Similar | None = None
) -> DescriptionCounts:
    """Score the nouns of a description as AMBER's script does.

    Args:
        nouns: in order, repetitions kept, singular; those outside of the vocabulary are passed over.
        scene: what the picture shows.
        words: the vocabulary.
        similar: whether two words' vectors are close; without it nobody decides.
    """
    kept = [noun for noun in nouns if noun in words.all]
    true, unlikely = _listed(scene.truth, words), _listed(scene.unlikely, words)
    covered: set[int] = set()
    invented: set[int] = set()
    wrong, undecided = 0, []
    for noun in kept:
        if noun in words.safe:
            continue
        if (place := _first(true, noun, operator.eq)) is not None:
            covered.add(place)
            continue
        _add(invented, _first(unlikely, noun, operator.eq))
        if similar is None:
            undecided.append(noun)
            wrong += 1
            continue
        _add(invented, _first(unlikely, noun, similar))
        place = _first(true, noun, similar)
        _add(covered, place)
        wrong += place is None
    return DescriptionCounts(
        nouns=len(kept),
        wrong=wrong,
        undecided=len(undecided),
        covered=len(covered),
        objects=len(scene.truth),
        invented=len(invented),
        unlikely=len(scene.unlikely),
        undecided_words=len(set(undecided)),
    )


def _listed(objects: Sequence[str], words: AmberWords) -> list[tuple[str, int]]:
    """The words for objects with the object's place: what stands for each of them first, then the objects."""
    stand_ins = [(other, place) for place, name in enumerate(objects) for other in words.stand_for[name]]
    return stand_ins + [(name, place) for place, name in enumerate(objects)]


def _first(listed: Sequence[tuple[str, int]], noun: str, same: Similar) -> int | None:
    return next((place for word, place in listed if same(noun, word)), None)


def _add(places: set[int], place: int | None) -> None:
    if place is not None:
        places.add(place)
