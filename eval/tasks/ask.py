"""Questions of one's own about one's own pictures, from a file; answers are scored where the right one is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.data.own_pictures import check_fields, picture_name
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.modality_interference import chosen_option
from vlm_guard.eval.tasks.pope.parsers import parse_answer
from vlm_guard.eval.tasks.shared.metric import Column, Counts, Kind, Metric, share
from vlm_guard.eval.tasks.shared.multiple_choice import options_of
from vlm_guard.eval.tasks.shared.own_data import question_data
from vlm_guard.eval.tasks.shared.received import Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import FilePath, TaskSettings, setting
from vlm_guard.untrusted.json_files import read_records, text_field
from vlm_guard.untrusted.paths import Inside
from vlm_guard.untrusted.printed_text import shown

FIELDS = (
    *("image", "question", "text", "options", "answer", "label"),
    *("question_id", "image_id", "strategy", "category", "object", "extra"),
)
"""What a question's record may hold. `text` and `label` are POPE's names for `question` and `answer`; `extra` is for
notes of any kind, handed on to the answers."""

_HANDED_ON = ("question_id", "image_id", "strategy", "category", "object", "extra")
_YES_NO = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class OwnQuestion:
    """One question of a file.

    Attributes:
        number: its place in the file, from 1.
        image: the picture's name, relative to the folder of the pictures.
        text: the question.
        options: from letter to the option's text; empty where the answer is free.
        label: the right answer (a letter of the options, yes or no), or None where it is not known or another text.
        handed_on: fields of the record that its answer has too.
    """

    number: int
    image: str
    text: str
    options: Mapping[str, str]
    label: str | None
    handed_on: Mapping[str, Any]


def read_own_questions(path: str | Path, folder: str | Path | None = None) -> list[OwnQuestion]:
    """The questions of a file, in its order; the pictures are not opened.

    Args:
        path: JSONL (or a JSON list), which may be gzipped, with the fields `FIELDS`.
        folder: where the pictures lie; beside the file by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks something, has an unknown field, or names a picture outside of the folder.
    """
    path = Path(path)
    inside = Inside(path.parent if folder is None else Path(folder))
    questions = [_read(record, f"{path}: record {number}", number, inside) for number, record in read_records(path)]
    if not questions:
        raise ValueError(f"{path} has no questions")
    return questions


def _read(record: dict[str, Any], where: str, number: int, inside: Inside) -> OwnQuestion:
    check_fields(record, FIELDS, where)
    for name, other in (("question", "text"), ("answer", "label")):
        if name in record and other in record:
            raise ValueError(f"{where} has both {name!r} and {other!r}, which mean the same; give one of them")
    text = text_field(record, "question" if "question" in record or "text" not in record else "text", where)
    if not text.strip():
        raise ValueError(f"{where}: the question is empty")
    given = text_field(record, "answer" if "answer" in record else "label", where, optional=True).strip()
    options = {} if record.get("options") is None else options_of(record["options"], where)
    label: str | None = None
    if options and given:
        letters = [given] if given in options else [letter for letter, content in options.items() if content == given]
        if len(letters) != 1:
            raise ValueError(
                f"{where}: the answer {shown(given)} must be one of the letters {', '.join(options)}, or its text"
            )
        label = letters[0]
    elif given.lower() in _YES_NO:
        label = given.lower()
    handed_on = {name: record[name] for name in _HANDED_ON if name in record}
    if given and label is None:
        handed_on["answer"] = given
    return OwnQuestion(
        number=number,
        image=picture_name(record, where, inside),
        text=text,
        options=options,
        label=label,
        handed_on={"question_id": number, **handed_on},
    )


class AskSettings(TaskSettings):
    """How questions are asked."""

    max_new_tokens: int = setting(128, "Token limit of an answer.", ge=1)
    suffix: str = setting("", "Text after each question and its options, such as ' Answer yes or no.'.")
    images: FilePath | None = setting(None, "Folder of the pictures, if they do not lie beside the file of questions.")


class AskScoreReceived(Received):
    """The score of an answered question."""

    number: int
    read: str | None
    label: str | None
    handed_on: dict[str, Any]


class AskDescribed(Received):
    """What decides the answers."""

    suffix: str
    questions: int


@register_task("ask")
class AskTask(Task):
    """The questions of a file, each once.

    An answer is scored where the question has options and the right one is given (by the letter or option it names),
    or where the right answer is yes or no (by its first word). Other answers are written down only.
    """

    help = "Your own questions; accuracy where they have options, or yes or no, with the right answer."
    source = "this project; no benchmark"
    table_title = "answers"
    own_data = "questions"
    data_kinds = ("questions",)
    data_help = "questions:FILE, a JSONL of image, question and, where known, options and answer"
    Settings = AskSettings
    Score = AskScoreReceived
    Described = AskDescribed
    columns = (
        Column(metric="ask.accuracy", label="right ↑"),
        Column(metric="ask.unparsed", label="unread ↓"),
        Column(metric="ask.yes_ratio", label="yes"),
        Column(metric="ask.words", label="words", kind="length"),
        Column(metric="ask.cut_off", label="cut off ↓"),
    )

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        numbers = {path: number for number, path in data.images.items()}
        places = {number: place for place, number in enumerate(data.images)}
        found = [(numbers.get(data.folder / question.image), question) for question in data.content]
        asked = [(number, question) for number, question in found if number is not None]
        # Those of one picture side by side: it is read once for a batch.
        asked.sort(key=lambda pair: places[pair[0]])
        self._asked = {f"ask/{question.number}": (number, question) for number, question in asked}

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """The pictures of a file's questions, numbered from 1 in the order they are first asked about."""
        path = Path(place)
        chosen = settings if isinstance(settings, AskSettings) else AskSettings()
        folder = path.parent if chosen.images is None else chosen.images
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; it must hold the pictures that {path} names")
        questions = read_own_questions(path, folder)
        images = {number: folder / name for number, name in enumerate(dict.fromkeys(q.image for q in questions), 1)}
        return question_data(
            "questions", folder, images, questions, count=count, files=[path], name=f"questions:{path.name}"
        )

    def describe(self) -> dict[str, Any]:
        """Number of questions, suffix and token limit; the data's hash says which questions."""
        return {
            "questions": len(self._asked),
            "suffix": self.settings.suffix,
            "max_new_tokens": self.max_new_tokens,
        }

    def samples(self) -> list[Sample]:
        """One per question."""
        return [
            Sample(key=key, task=self.name, image_id=number, prompt=self._prompt(question))
            for key, (number, question) in self._asked.items()
        ]

    def _prompt(self, question: OwnQuestion) -> str:
        options = [f"{letter}: {text}" for letter, text in question.options.items()]
        return "\n".join([question.text, *options]) + self.settings.suffix

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The answer as read, the right one where it is known, and what the record hands on."""
        _, question = self._asked[sample.key]
        read: str | None = None
        if question.options:
            read = chosen_option(text, question.options) or "unparsed"
        elif question.label is not None:
            read = parse_answer(text, "strict")
        return {
            "number": question.number,
            "question": question.text,
            **({"options": dict(question.options)} if question.options else {}),
            "read": read,
            "label": question.label,
            "words": len(text.split()),
            "handed_on": dict(question.handed_on),
        }

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """The counts of one answer."""
        score = record["score"]
        read, label = score["read"], score["label"]
        return {
            "answers": 1,
            "words": len(record["text"].split()),
            "cut_off": not record["finished"],
            "readable": read is not None,
            "unparsed": read == "unparsed",
            "labelled": label is not None,
            "right": label is not None and read == label,
            "yes_no": label in _YES_NO,
            "yes": label in _YES_NO and read == "yes",
        }

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Length always; the others where some question has what they are about."""
        scores = [record["score"] for record in records]
        found = [
            _metric("words", "words", share("words", "answers"), "length"),
            _metric("cut_off", "cut off", share("cut_off", "answers"), better="lower"),
        ]
        if any(score["label"] is not None for score in scores):
            found.append(_metric("accuracy", "accuracy", share("right", "labelled"), better="higher"))
        if any(score["read"] is not None for score in scores):
            found.append(_metric("unparsed", "unparsed", share("unparsed", "readable"), better="lower"))
        if any(score["label"] in _YES_NO for score in scores):
            found.append(_metric("yes_ratio", "yes ratio", share("yes", "yes_no")))
        return tuple(found)

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """Answers, how many have a known right answer, and how many of them are right."""
        counted = [cls.counts(record) for record in records]
        names = ("answers", "labelled", "right", "unparsed", "cut_off")
        return {name: int(sum(counts[name] for counts in counted)) for name in names}

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """Number of questions and suffix."""
        suffix = described["suffix"].strip()
        return f"{described['questions']} own questions" + (f' with "{suffix}"' if suffix else "")

    @classmethod
    def answer_line(cls, record: Record) -> dict[str, Any]:
        """An answer as `vlm-guard pope` reads it: the model's under `text`, the right one under `label`."""
        score = record["score"]
        known = score["label"] is not None
        return {
            **score["handed_on"],
            "image": record["image"],
            "question": score.get("question", record["prompt"]),
            **({"options": score["options"]} if "options" in score else {}),
            "text": record["text"],
            **({"read": score["read"]} if score["read"] is not None else {}),
            **({"label": score["label"], "right": score["read"] == score["label"]} if known else {}),
            "tokens": record["tokens"],
            "finished": record["finished"],
        }

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with its answer."""
        score = record["score"]
        return {
            "question": record["prompt"],
            "label": score["label"] or "",
            "groups": [],
            "answer": score["read"] or record["text"],
        }


def _metric(
    name: str, label: str, compute: Callable[[Counts], np.ndarray], kind: Kind = "share", better: Any = None
) -> Metric:
    return Metric(name=f"ask.{name}", label=label, kind=kind, better=better, compute=compute)
