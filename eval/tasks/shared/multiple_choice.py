"""Multiple-choice questions about pictures, from a file of the user's: one JSON object a line.

`question`, `options` (texts, or letters with their texts), `answer` (the letter of the right option, or its text) and
`image` (a picture file, named relative to the file's folder and inside it).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vlm_guard.eval.tasks.chair.captions import read_records


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord:
    """One question of a file.

    Attributes:
        number: its place in the file, from 1.
        question: the question.
        options: from letter to the option's text.
        answer: letter of the right option.
        image: the picture's file.
        rest: what else the record holds, for the task that reads it.
    """

    number: int
    question: str
    options: Mapping[str, str]
    answer: str
    image: Path
    rest: Mapping[str, Any]


def read_choices(path: str | Path) -> list[ChoiceRecord]:
    """The questions of a file, in its order; the pictures are not opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks something, or names a picture outside of the file's folder.
    """
    path = Path(path)
    return [_read(record, f"{path}: record {number}", number, path.parent) for number, record in read_records(path)]


def _read(record: Mapping[str, Any], where: str, number: int, folder: Path) -> ChoiceRecord:
    missing = [name for name in ("question", "options", "answer", "image") if name not in record]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}; it needs question, options, answer and image")
    options = options_of(record["options"], where)
    question, answer, image = (record[name] for name in ("question", "answer", "image"))
    if not all(isinstance(value, str) and value.strip() for value in (question, answer, image)):
        raise ValueError(f"{where}: question, answer and image must be text")
    letters = [letter for letter, text in options.items() if answer in (letter, text)]
    if answer in options:
        letters = [answer]
    if len(letters) != 1:
        raise ValueError(f"{where}: the answer {answer!r} must be one of the letters {', '.join(options)}, or its text")
    file = folder / image
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where}: the picture {image!r} lies outside of {folder}; put it beside the file")
    rest = {name: value for name, value in record.items() if name not in ("question", "options", "answer", "image")}
    return ChoiceRecord(number=number, question=question, options=options, answer=letters[0], image=file, rest=rest)


def options_of(value: Any, where: str) -> dict[str, str]:
    """The options of a record by letter; a list gets the letters A, B, ...

    Raises:
        ValueError: there are fewer than two or more than 26, or they are no texts.
    """
    if isinstance(value, list):
        value = dict(zip(ascii_uppercase, value)) if len(value) <= len(ascii_uppercase) else None
    valid = isinstance(value, Mapping) and len(value) > 1
    if not valid or not all(isinstance(text, str) and letter in set(ascii_uppercase) for letter, text in value.items()):
        raise ValueError(f"{where}: options must be two to 26 texts, or letters with texts, {{'A': 'a dog', ...}}")
    return dict(value)
