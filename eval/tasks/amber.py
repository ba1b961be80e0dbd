"""AMBER's yes/no part: questions about existence, attributes and relations (Wang et al., arXiv 2311.07397).

"No" is the positive class: precision is over answers No, recall over questions whose answer is no. The generative
part needs word vectors of a large spaCy model and is not scored here. The data is not part of this project.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    groups: dict[str, list[tuple[str, str]]] = {"all": []}
    for question, text in zip(questions, answers, strict=True):
        pair = (question.label, text.lower() if text in ("Yes", "No") else "unparsed")
        for name in dict.fromkeys(("all", question.dimension, question.part)):
            groups.setdefault(name, []).append(pair)
    return {
        "metric": "AMBER, yes/no part",
        **{
            name: _count(pairs).to_dict(_F1_EPSILON_EXISTENCE if name == "existence" else _F1_EPSILON)
            for name, pairs in groups.items()
        },
    }


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
