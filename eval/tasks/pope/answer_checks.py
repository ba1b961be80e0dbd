"""Whether a file of answers is one, and whether its answers are to the questions it is scored by.

The three files of POPE share their numbers, so numbers alone match the answers to one file with the questions of
another. Where answers say what was asked, or about which picture, that is compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.coco import image_id
from vlm_guard.eval.data.lmms_eval_samples import plain_record
from vlm_guard.eval.tasks.pope.questions import PopeQuestion
from vlm_guard.untrusted.json_files import as_whole_number, read_records
from vlm_guard.untrusted.printed_text import one_line, shown

NUMBER_ONLY = (
    "matched by number only: the answers do not say what was asked (prompt, question or image), so that they are to "
    "these questions is not checked"
)
_ASKED_KEYS = ("question", "prompt")
_PICTURE_KEYS = ("image", "image_id")
_QUESTION_KEYS = ("text", "query")
_NEVER_A_QUESTION = ("answer", "ans", "output", "response", "caption", "method", "question", "prompt")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the record of an answer says about its question.

    Attributes:
        place: number of the record in its file.
        question_id: the question's number; None where there is none, so that the order of the file counts.
        method: the method that gave the answer, or "".
        strategy: the strategy it names, or "".
        text: what was asked, or "".
        image: the picture's name or id, or "".
    """

    place: int
    question_id: int | None
    method: str
    strategy: str
    text: str
    image: str


def require_answers(paths: Sequence[str | Path]) -> None:
    """Refuse files that are something else: POPE's questions themselves, or captions.

    Raises:
        ValueError: a file is one of these; the message says what to do with it.
    """
    for path in paths:
        records = [record for _, record in read_records(path)]
        if records and all(map(_is_question, records)):
            raise ValueError(
                f"{path}: no answer could be read; it looks like a question file (every record has a label and a "
                "question, none an answer). Give the file of answers, and this one as --questions"
            )
        if records and all(map(_is_caption, records)):
            raise ValueError(f"{path}: these are captions (image_id, caption); score them with vlm-guard chair")


def _is_question(record: Mapping[str, Any]) -> bool:
    asked = next((record[key] for key in _QUESTION_KEYS if isinstance(record.get(key), str)), "")
    return "label" in record and asked.strip().endswith("?") and not any(key in record for key in _NEVER_A_QUESTION)


def _is_caption(record: Mapping[str, Any]) -> bool:
    asked = ("question_id", "question", "prompt", "label")
    return "caption" in record and not any(key in record for key in asked)


def require_read(paths: Sequence[str | Path], texts: Iterable[str], unparsed: int) -> None:
    """Refuse answers of which not one says yes or no.

    Args:
        paths: the files of answers.
        texts: all answers.
        unparsed: how many of them could not be read.

    Raises:
        ValueError: all of them; the message shows the first.
    """
    texts = list(texts)
    if texts and unparsed == len(texts):
        raise ValueError(
            f"{', '.join(map(str, paths))}: no answer could be read: none of {len(texts)} says yes or no, the first is "
            f"{shown(texts[0])}. Give the file with the model's answers, or another --parser"
        )


def asked_in(path: str | Path) -> list[Asked]:
    """What every record of a file of answers says about its question."""
    found = []
    for place, record in read_records(path):
        plain = plain_record(record, f"{path}: record {place}")
        text = next((plain[key] for key in _ASKED_KEYS if isinstance(plain.get(key), str)), "")
        given = next((plain[key] for key in _PICTURE_KEYS if isinstance(plain.get(key), str | int)), "")
        found.append(
            Asked(
                place=place,
                question_id=as_whole_number(plain.get("question_id")),
                method=str(record.get("method") or ""),
                strategy=str(plain.get("strategy") or ""),
                text=text,
                image=str(given),
            )
        )
    return found


def number_only(paths: Sequence[str | Path]) -> bool:
    """Whether no record of these files of answers says what was asked."""
    return not any(record.text or record.image for path in paths for record in asked_in(path))


def require_same_questions(path: str | Path, files: Mapping[str, Sequence[PopeQuestion]], file: str) -> None:
    """Refuse answers that say they are to other questions, or about other pictures.

    Args:
        path: the file of answers.
        files: the questions of every given question file, by its name.
        file: the question file these are to be answers to; "" for all of `files`.

    Raises:
        ValueError: there is such an answer. The message names the record and both questions, and, where the answers
            say they are to another one of the files, that one.
    """
    records = asked_in(path)
    named = [(name, question) for name in ([file] if file else files) for question in files[name]]
    found = _first_difference(records, named)
    if found is None:
        return
    record, name, question = found
    fitting = next(
        (other for other in files if other != file and _fit(records, [(other, item) for item in files[other]])), None
    )
    advice = (
        f"the answers of {path} are to {fitting}: give the files in the same order"
        if fitting
        else ("give the question file that was asked")
    )
    said = shown(record.text) if record.text else f"a question about {shown(record.image)}"
    raise ValueError(
        f"{path}: record {record.place} is an answer to {said}, but question {question.question_id} of {name} is "
        f"{shown(question.text)} about {shown(question.image)}; {advice}"
    )


def _fit(records: Sequence[Asked], named: Sequence[tuple[str, PopeQuestion]]) -> bool:
    numbers = {question.question_id for _, question in named}
    known = [record for record in records if record.text]
    return (
        bool(known)
        and all(record.question_id is None or record.question_id in numbers for record in known)
        and _first_difference(records, named) is None
    )


def _first_difference(
    records: Sequence[Asked], named: Sequence[tuple[str, PopeQuestion]]
) -> tuple[Asked, str, PopeQuestion] | None:
    """The first answer to something else than the question it is matched with."""
    strategies = {question.strategy for _, question in named}
    only = next(iter(strategies)) if len(strategies) == 1 else ""
    by_key = {(question.strategy, question.question_id): (name, question) for name, question in named}
    counted: dict[str, int] = {}
    for record in records:
        if record.question_id is None:
            place = counted[record.method] = counted.get(record.method, -1) + 1  # each method's in the questions' order
            match = named[place] if place < len(named) else None
        else:
            match = by_key.get((record.strategy or only, record.question_id))
        if match is not None and not (_same_text(record, match[1]) and _same_picture(record, match[1])):
            return record, *match
    return None


def _same_text(record: Asked, question: PopeQuestion) -> bool:
    """Whether the record's text holds the question, whatever stands before or behind it, or at least its object."""
    asked, known = _words(record.text), _words(question.text)
    named = f" {_words(question.object).strip()} "
    return not asked.strip() or not known.strip() or known in asked or (bool(named.strip()) and named in asked)


def _words(text: str) -> str:
    """A text in lower case with single blanks, signs left out and blanks at both ends, to look for whole words in."""
    kept = "".join(sign if sign.isalnum() else " " for sign in text.lower().replace("imange", "image"))
    return f" {' '.join(kept.split())} "


def _same_picture(record: Asked, question: PopeQuestion) -> bool:
    """Whether both name one picture; what cannot be compared, an id with a name that holds none, is no difference."""
    if not record.image or not question.image:
        return True
    try:
        number = image_id(record.image)
    except ValueError:
        number = None
    if number is not None and question.image_id is not None:
        return number == question.image_id
    if number is not None or question.image_id is not None:
        return True
    return _stem(record.image) == _stem(question.image)


def _stem(name: str) -> str:
    return one_line(Path(name.replace("\\", "/")).stem.lower())
