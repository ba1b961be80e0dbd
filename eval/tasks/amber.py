"""AMBER's yes/no part: questions about existence, attributes and relations (Wang et al., arXiv 2311.07397).

`--data amber:FOLDER` is AMBER's release (its `data` folder's files, in FOLDER or in FOLDER/data) with the pictures
`AMBER_1.jpg`, ... in FOLDER, FOLDER/image or FOLDER/images. It is not part of this project.

"No" is the positive class: precision is over answers No, recall over questions whose answer is no. The generative part
is the task amber_generative.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vlm_guard.eval.data.coco import image_id
from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.pope.parsers import parse_answer
from vlm_guard.eval.tasks.shared.fair import FairPair, yes_matched
from vlm_guard.eval.tasks.shared.metric import Better, Column, Counts, Metric, harmonic, ratio, share
from vlm_guard.eval.tasks.shared.own_data import folder_of, question_data
from vlm_guard.eval.tasks.shared.received import Name, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting
from vlm_guard.untrusted.json_files import read_records, text_field, whole_number
from vlm_guard.untrusted.paths import relative_name
from vlm_guard.untrusted.printed_text import shown

# AMBER's annotation types and the dimension and part its script counts them under.
_TYPES = {
    "discriminative-hallucination": ("existence", "existence"),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation", "relation"),
    "relation": ("relation", "relation"),
}

# The script adds a small number to the divisor of F1: ten times as large for existence as everywhere else.
_F1_EPSILON = 0.0001
_F1_EPSILON_EXISTENCE = 0.001


@dataclass(frozen=True, kw_only=True)
class AmberQuestion:
    """One yes/no question of AMBER.

    Attributes:
        question_id: AMBER's number.
        image: file name of the picture.
        text: the question.
        label: yes or no.
        dimension: existence, attribute or relation.
        part: existence, state, number, action or relation.
    """

    question_id: int
    image: str
    text: str
    label: str
    dimension: str
    part: str


def read_amber(queries: str | Path, annotations: str | Path) -> list[AmberQuestion]:
    """The yes/no questions of AMBER's files; questions of the generative part are passed over.

    Args:
        queries: `query_discriminative.json` or `query_all.json`, records with id, image and query.
        annotations: `annotations.json`, records with id, type and truth.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a question has no annotation, or one of an unknown type or truth.
    """
    truths: dict[int, dict[str, Any]] = {}
    for number, record in read_records(annotations):
        where = f"{annotations}: record {number}"
        known = whole_number(record.get("id"), "id", where)
        text_field(record, "type", where)
        if known in truths:
            raise ValueError(f"{where} has id {known}, which stands in the file before")
        truths[known] = record
    questions = []
    for number, record in read_records(queries):
        if missing := [key for key in ("id", "image", "query") if key not in record]:
            raise ValueError(f"{queries}: record {number} has no {', '.join(missing)}; is it an AMBER query file?")
        where = f"{queries}: record {number}"
        question_id = whole_number(record["id"], "id", where)
        truth = truths.get(question_id)
        if truth is None:
            raise ValueError(f"{annotations} has nothing on question {question_id} of {queries}")
        if truth["type"] == "generative":
            continue
        if truth["type"] not in _TYPES or truth.get("truth") not in ("yes", "no"):
            raise ValueError(
                f"{annotations}: question {question_id} has the type {shown(truth['type'])} and the truth "
                f"{shown(truth.get('truth'))}; known types are {', '.join(_TYPES)}, truths yes and no"
            )
        dimension, part = _TYPES[truth["type"]]
        questions.append(
            AmberQuestion(
                question_id=question_id,
                image=relative_name(text_field(record, "image", where), where),
                text=text_field(record, "query", where),
                label=truth["truth"],
                dimension=dimension,
                part=part,
            )
        )
    return questions


@dataclass(frozen=True, kw_only=True)
class AmberScore:
    """Counts of a set of AMBER's yes/no questions, no being positive.

    Attributes:
        questions: number of questions.
        correct: questions answered rightly.
        label_no: questions whose answer is no.
        answered_no: questions answered No.
        correct_no: questions answered No, rightly.
        unparsed: answers that are neither Yes nor No, which are wrong.
    """

    questions: int
    correct: int
    label_no: int
    answered_no: int
    correct_no: int
    unparsed: int

    def to_dict(self, epsilon: float = _F1_EPSILON) -> dict[str, Any]:
        """Counts and rates in percent, rounded to 0.1 before F1 is formed from them, as AMBER's script does."""

        def percent(part: int, whole: int) -> float:
            return round(part / whole * 100, 1) if whole else 0.0

        precision, recall = percent(self.correct_no, self.answered_no), percent(self.correct_no, self.label_no)
        f1 = round(2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + epsilon) * 100, 1)
        return {
            **asdict(self),
            "accuracy": percent(self.correct, self.questions),
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }


def _count(pairs: Sequence[tuple[str, str]]) -> AmberScore:
    return AmberScore(
        questions=len(pairs),
        correct=sum(label == answer for label, answer in pairs),
        label_no=sum(label == "no" for label, _ in pairs),
        answered_no=sum(answer == "no" for _, answer in pairs),
        correct_no=sum(label == answer == "no" for label, answer in pairs),
        unparsed=sum(answer == "unparsed" for _, answer in pairs),
    )


def score_amber(questions: Sequence[AmberQuestion], answers: Sequence[str]) -> dict[str, Any]:
    """Score answers, one per question and in the questions' order.

    An answer counts only if it is exactly "Yes" or "No", as in AMBER's script; everything else is wrong and counted
    as unparsed.

    Returns:
        `all`, and a score for each dimension and each part of the attributes that has questions; as JSON can hold
        them, rates in percent.

    Raises:
        ValueError: there are more questions than answers or fewer.
    """
    return _scores(
        (question.dimension, question.part, question.label, read_exactly(text))
        for question, text in zip(questions, answers, strict=True)
    )


def read_exactly(text: str) -> str:
    """Yes or no for exactly "Yes" or "No", as AMBER's script reads answers; unparsed for everything else."""
    return text.lower() if text in ("Yes", "No") else "unparsed"


def _scores(answered: Iterable[tuple[str, str, str, str]]) -> dict[str, Any]:
    """AMBER's scores of answers, each given by dimension, part, label and the answer as read."""
    groups: dict[str, list[tuple[str, str]]] = {"all": []}
    for dimension, part, label, answer in answered:
        for name in _groups(dimension, part):
            groups.setdefault(name, []).append((label, answer))
    return {
        "metric": "AMBER, yes/no part",
        **{
            name: _count(pairs).to_dict(_F1_EPSILON_EXISTENCE if name == "existence" else _F1_EPSILON)
            for name, pairs in groups.items()
        },
    }


def _groups(dimension: str, part: str) -> list[str]:
    """The sets of questions that a question counts in."""
    return list(dict.fromkeys(("all", dimension, part)))


def read_amber_answers(questions: Sequence[AmberQuestion], path: str | Path) -> list[str]:
    """Answers from AMBER's result format, records with id and response, in the questions' order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a question has no answer, or a record is incomplete.
    """
    responses: dict[int, str] = {}
    for number, record in read_records(path):
        if not {"id", "response"} <= record.keys():
            raise ValueError(f"{path}: record {number} needs 'id' and 'response'; it has {shown(list(record))}")
        where = f"{path}: record {number}"
        question_id = whole_number(record["id"], "id", where)
        if question_id in responses:
            raise ValueError(f"{where} answers question {question_id} a second time")
        responses[question_id] = text_field(record, "response", where)
    missing = [question.question_id for question in questions if question.question_id not in responses]
    if missing:
        raise ValueError(f"{path} has no answer to {len(missing)} of {len(questions)} questions, e.g. {missing[0]}")
    return [responses[question.question_id] for question in questions]


class AmberSettings(TaskSettings):
    """How AMBER is asked and read."""

    max_new_tokens: int = setting(10, "Token limit of an answer.", ge=1)
    suffix: str = setting("", "Text after each question, such as ' Answer with Yes or No.'.")
    parser: Literal["exact", "strict"] = setting(
        "exact",
        "exact: only 'Yes' and 'No' count, as in AMBER's script; strict: the first word, as POPE's strict parser.",
    )


class AmberScoreReceived(Received):
    """The score of an answered question."""

    answer: Literal["yes", "no", "unparsed"]
    label: Literal["yes", "no"]
    dimension: Name
    part: Name


class AmberDescribed(Received):
    """How answers were read."""

    parser: str


@register_task("amber")
class AmberTask(Task):
    """AMBER's yes/no questions about the pictures of its release."""

    help = "AMBER's yes/no questions about existence, attributes and relations; no is the positive class."
    source = "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation, arXiv 2311.07397"
    table_title = "AMBER"
    own_data = "amber"
    data_kinds = ("amber",)
    data_help = "amber:FOLDER, AMBER's release: annotations.json, query/query_discriminative.json, the pictures"
    Settings = AmberSettings
    Score = AmberScoreReceived
    Described = AmberDescribed
    columns = (
        Column(metric="amber.all.accuracy", label="AMBER acc ↑"),
        Column(metric="amber.all.f1", label="AMBER F1 ↑"),
        Column(metric="amber.existence.f1", label="exist. F1 ↑"),
        Column(metric="amber.attribute.f1", label="attr. F1 ↑"),
        Column(metric="amber.relation.f1", label="rel. F1 ↑"),
        Column(metric="amber.all.unparsed", label="unparsed ↓"),
        Column(metric="amber.over_control", label="F1 − control ↑", kind="difference", better="higher"),
    )
    watches_yes_no = True
    joined_with = "amber_generative"
    joined_help = "AMBER score, (100 - CHAIR + F1) / 2"

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """AMBER's release; see the head of this file."""
        folder = folder_of("amber", place, "AMBER's release: annotations.json, query/ and the pictures")
        annotations = find_in_release(folder, "annotations.json", "data/annotations.json")
        queries = find_in_release(
            folder, *(f"{top}query/query_{name}.json" for top in ("data/", "") for name in _QUERIES)
        )
        questions = read_amber(queries, annotations)
        numbers = {question.image: image_id(question.image) for question in questions}
        images = {number: _picture(folder, name) for name, number in numbers.items()}
        return question_data("amber", folder, images, questions, count=count, files=(annotations, queries))

    def samples(self) -> list[Sample]:
        """One per question, those of one picture side by side."""
        return [
            Sample(
                key=f"amber/{question.question_id}",
                task=self.name,
                image_id=number,
                prompt=f"{question.text}{self.settings.suffix}",
            )
            for number in self.data.images
            for question in self._questions.get(number, ())
        ]

    @cached_property
    def _questions(self) -> dict[int, list[AmberQuestion]]:
        found: dict[int, list[AmberQuestion]] = {}
        for question in self.data.content:
            found.setdefault(image_id(question.image), []).append(question)
        return found

    @cached_property
    def _by_key(self) -> dict[str, AmberQuestion]:
        return {f"amber/{question.question_id}": question for question in self.data.content}

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The answer as read, and what kind of question it answers."""
        question = self._by_key[sample.key]
        read = read_exactly(text) if self.settings.parser == "exact" else parse_answer(text, "strict", question.label)
        return {"answer": read, "label": question.label, "dimension": question.dimension, "part": question.part}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One question, in all sets it belongs to."""
        score = record["score"]
        counted = asdict(_count([(score["label"], score["answer"])]))
        groups = _groups(score["dimension"], score["part"])
        return {f"{group}.{name}": value for group in groups for name, value in counted.items()}

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The rates of every set of questions, exact ones: AMBER's script rounds, which the summary does."""
        groups = dict.fromkeys(
            group for record in records for group in _groups(record["score"]["dimension"], record["score"]["part"])
        )
        return tuple(metric for group in groups for metric in _metrics(group))

    @classmethod
    def fair_pair(cls, baseline: Sequence[Record], other: Sequence[Record]) -> FairPair | None:
        """The baseline with a constant leaning to yes that makes it say yes as often as the method."""
        return yes_matched(baseline, other, {"amber.all.f1": "amber.over_control"})

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """AMBER's scores as its script prints them."""
        scores = (record["score"] for record in records)
        return _scores((score["dimension"], score["part"], score["label"], score["answer"]) for score in scores)

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """How answers are read."""
        return f"AMBER's yes/no part, no being positive, {described['parser']} reading of the answers"

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with its dimension and part."""
        score = record["score"]
        return {**super().page_entry(record), "groups": list(dict.fromkeys((score["dimension"], score["part"])))}


_QUERIES = ("discriminative", "all")


def find_in_release(folder: Path, *names: str) -> Path:
    """The first of these files that the release has; FileNotFoundError where it has none of them."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} is no AMBER release: it has none of {', '.join(names)}")
    return found


def _picture(folder: Path, name: str) -> Path:
    """The file of a picture; the place of the release where it is in none."""
    places = [folder / part / Path(name).name for part in ("image", "images", "")]
    return next((path for path in places if path.is_file()), places[0])


def _metrics(group: str) -> tuple[Metric, ...]:
    precision, recall = (share(f"{group}.correct_no", f"{group}.{whole}") for whole in ("answered_no", "label_no"))

    def f1(counts: Counts) -> Any:
        return harmonic(precision(counts), recall(counts))

    def rate(part: str) -> Callable[[Counts], Any]:
        return lambda counts: ratio(counts[f"{group}.{part}"], counts[f"{group}.questions"])

    def metric(name: str, better: Better, compute: Callable[[Counts], Any]) -> Metric:
        return Metric(
            name=f"amber.{group}.{name}", label=f"{group} {name}", kind="share", better=better, compute=compute
        )

    return (
        metric("accuracy", "higher", rate("correct")),
        metric("precision", "higher", precision),
        metric("recall", "higher", recall),
        metric("f1", "higher", f1),
        metric("unparsed", "lower", rate("unparsed")),
    )
