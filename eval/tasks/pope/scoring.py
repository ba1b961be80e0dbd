"""POPE: is the object in the image, yes or no? Scores of answers (Li et al., EMNLP 2023).

The questions come from `vlm_guard.eval.tasks.pope.questions`, the reading of answers from
`vlm_guard.eval.tasks.pope.parsers`; their public names are here too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.lmms_eval_samples import plain_record
from vlm_guard.eval.tasks.pope.parsers import PARSERS, Answer, parse_answer, token_readout, yes_no_token_ids
from vlm_guard.eval.tasks.pope.questions import (
    SUFFIXES,
    ObjectStatistics,
    PopeQuestion,
    build_questions,
    object_statistics,
    question_text,
    read_questions,
    sample_images,
    with_suffix,
    write_questions,
)
from vlm_guard.untrusted.json_files import read_records, text_field, whole_number
from vlm_guard.untrusted.printed_text import SHOWN_CHARACTERS, one_line, shown

__all__ = [
    "PARSERS",
    "SUFFIXES",
    "Answer",
    "ObjectStatistics",
    "PopeQuestion",
    "PopeScore",
    "PopeSummary",
    "build_questions",
    "match_answers",
    "object_statistics",
    "parse_answer",
    "question_text",
    "read_answered",
    "read_answers",
    "read_questions",
    "relabel",
    "relabel_by_files",
    "sample_images",
    "score_answers",
    "score_predictions",
    "token_readout",
    "with_suffix",
    "write_questions",
    "yes_no_token_ids",
]

_ANSWER_KEYS = ("answer", "ans", "text", "output", "response", "caption")
_RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True, kw_only=True)
class PopeScore:
    """Counts of one set of yes/no questions, yes being positive, and the rates that follow.

    An unparsed answer is wrong: it counts among the questions, and for a question whose answer is yes among those
    recall divides by, but it is neither a yes nor a no.

    Attributes:
        true_yes: answered yes, rightly.
        false_yes: answered yes, wrongly.
        true_no: answered no, rightly.
        false_no: answered no, wrongly.
        unparsed_yes: no answer could be read, the right one being yes.
        unparsed_no: no answer could be read, the right one being no.
    """

    true_yes: int
    false_yes: int
    true_no: int
    false_no: int
    unparsed_yes: int
    unparsed_no: int

    @property
    def questions(self) -> int:
        """Number of questions."""
        return sum(asdict(self).values())

    @property
    def unparsed(self) -> int:
        """Number of answers that could not be read."""
        return self.unparsed_yes + self.unparsed_no

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _ratio(self.true_yes + self.true_no, self.questions)

    @property
    def precision(self) -> float:
        """Share of the yes answers that are right; 0 without any."""
        return _ratio(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> float:
        """Share of the questions whose answer is yes that were answered yes; 0 without any."""
        return _ratio(self.true_yes, self.true_yes + self.false_no + self.unparsed_yes)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of the questions answered yes."""
        return _ratio(self.true_yes + self.false_yes, self.questions)

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates (fractions), as JSON can hold them."""
        return {
            "questions": self.questions,
            "unparsed": self.unparsed,
            **{name: getattr(self, name) for name in _RATES},
            "counts": asdict(self),
        }


@dataclass(frozen=True, kw_only=True)
class PopeSummary:
    """POPE's scores per strategy, and their plain mean.

    Attributes:
        parser: how the answers were read.
        strategies: score of each strategy, in the order the questions came.
    """

    parser: str
    strategies: dict[str, PopeScore]

    @property
    def mean(self) -> dict[str, float]:
        """Every rate averaged over the strategies, each with the same weight."""
        scores = self.strategies.values()
        return {name: _ratio(sum(getattr(score, name) for score in scores), len(scores)) for name in _RATES}

    @property
    def unparsed(self) -> int:
        """Number of answers that could not be read, over all strategies."""
        return sum(score.unparsed for score in self.strategies.values())

    def to_dict(self) -> dict[str, Any]:
        """Scores per strategy and their mean, as JSON can hold them."""
        return {
            "metric": "POPE",
            "parser": self.parser,
            "questions": sum(score.questions for score in self.strategies.values()),
            "unparsed": self.unparsed,
            "strategies": {name: score.to_dict() for name, score in self.strategies.items()},
            "mean": self.mean,
        }


def score_predictions(labels: Iterable[str], predictions: Iterable[str]) -> PopeScore:
    """Count predictions (yes, no or unparsed) against labels (yes or no), in the same order.

    Raises:
        ValueError: there are more of one than of the other, or one is another word.
    """
    names = {
        ("yes", "yes"): "true_yes",
        ("no", "yes"): "false_yes",
        ("no", "no"): "true_no",
        ("yes", "no"): "false_no",
        ("yes", "unparsed"): "unparsed_yes",
        ("no", "unparsed"): "unparsed_no",
    }
    counts = dict.fromkeys(names.values(), 0)
    for pair in zip(labels, predictions, strict=True):
        if pair not in names:
            raise ValueError(
                f"the label and the prediction are {pair}; they must be yes or no, and yes, no or unparsed"
            )
        counts[names[pair]] += 1
    return PopeScore(**counts)


def score_answers(questions: Sequence[PopeQuestion], answers: Sequence[str], parser: str = "strict") -> PopeSummary:
    """Score answers in text form, one per question and in the questions' order (`match_answers` brings them into it).

    Args:
        questions: the questions, of one or several strategies.
        answers: the text of the answer to each.
        parser: how to read yes or no out of a text (`parse_answer`).

    Raises:
        ValueError: there are more questions than answers or fewer, or the parser is unknown.
    """
    if len(questions) != len(answers):
        raise ValueError(f"there are {len(questions)} questions but {len(answers)} answers")
    by_strategy: dict[str, list[tuple[str, str]]] = {}
    for question, answer in zip(questions, answers):
        prediction = parse_answer(answer, parser, question.label)
        by_strategy.setdefault(question.strategy, []).append((question.label, prediction))
    return PopeSummary(
        parser=parser,
        strategies={name: score_predictions(*zip(*pairs)) for name, pairs in by_strategy.items()},
    )


def relabel(
    questions: Sequence[PopeQuestion], answers: Sequence[str], relabelled: Sequence[PopeQuestion]
) -> tuple[list[PopeQuestion], list[str]]:
    """Answered questions with the labels of another file that keeps their numbers, such as RePOPE's.

    Args:
        questions: the questions that were asked.
        answers: the answer to each.
        relabelled: questions of the same strategies and numbers with other labels; those that are missing are left out.

    Returns:
        The kept questions with their new labels, and the answers to them.

    Raises:
        ValueError: a relabelled question was not asked, or was asked about something else.
    """
    texts = {(item.strategy, item.question_id): (item, answer) for item, answer in zip(questions, answers, strict=True)}
    kept = []
    for item in relabelled:
        where = f"question {item.question_id} ({shown(item.strategy)}) of the relabelled questions"
        if (item.strategy, item.question_id) not in texts:
            raise ValueError(f"{where} is not among those that were asked; give the question file of the same strategy")
        asked, answer = texts[item.strategy, item.question_id]
        if (asked.image_id, asked.object) != (item.image_id, item.object):
            raise ValueError(f"{where} is {shown(item.text)} about {shown(item.image)}; asked was {shown(asked.text)}")
        kept.append((item, answer))
    return [item for item, _ in kept], [answer for _, answer in kept]


def relabel_by_files(
    questions: Sequence[PopeQuestion], answers: Sequence[str], paths: Sequence[str | Path]
) -> tuple[list[PopeQuestion], list[str]]:
    """`relabel` with the questions of files, one after the other.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `relabel` and `read_questions`; the message names the file.
    """
    kept: list[PopeQuestion] = []
    texts: list[str] = []
    for path in paths:
        labels = read_questions(path)
        try:
            asked, answered = relabel(questions, answers, labels)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        kept, texts = [*kept, *asked], [*texts, *answered]
    return kept, texts


def read_answers(path: str | Path) -> list[tuple[int | None, str | None, str]]:
    """Answers from a JSONL file (or a JSON list): question id and strategy, where given, and text.

    A record holds its text as `answer`, `ans`, `text`, `output`, `response` or `caption`, in this order of preference.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record has no text, its question id is no whole number, or its strategy is no text.
    """
    answers = [answer_in(record, f"{path}: record {number}") for number, record in read_records(path)]
    if not answers:
        raise ValueError(f"{path} has no answers")
    return answers


def answer_in(record: dict[str, Any], where: str) -> tuple[int | None, str | None, str]:
    """Question id and strategy of an answer's record, where given, and its text; also of one of lmms-eval's samples.

    Raises:
        ValueError: it has no text, its question id is no whole number, or its strategy is no text.
    """
    record = plain_record(record, where)
    key = next((key for key in _ANSWER_KEYS if key in record), None)
    if key is None or not isinstance(record[key], str):
        raise ValueError(
            f"{where} needs the answer as text under one of {', '.join(_ANSWER_KEYS)}; it has "
            f"{one_line(', '.join(record), SHOWN_CHARACTERS) or 'nothing'}"
        )
    given = record.get("question_id")
    question_id = None if given is None else whole_number(given, "question_id", where)
    strategy = text_field(record, "strategy", where, optional=True) or None
    return question_id, strategy, record[key]


def match_answers(
    questions: Sequence[PopeQuestion], answers: Sequence[tuple[int | None, str | None, str]]
) -> list[str]:
    """The text of the answer to each question, in the questions' order.

    Answers with a question id are matched by it, and by their strategy where they name one; answers without ids
    must be as many as the questions and in their order.

    Raises:
        ValueError: a question has no answer or two, or an answer no question.
    """
    if all(question_id is None for question_id, _, _ in answers):
        if len(answers) != len(questions):
            raise ValueError(f"there are {len(questions)} questions but {len(answers)} answers, which have no ids")
        return [text for _, _, text in answers]
    strategies = {question.strategy for question in questions}
    if None in (question_id for question_id, _, _ in answers):
        raise ValueError("some answers have a question_id and some have none; give one to all of them or to none")
    keys = [(question.strategy, question.question_id) for question in questions]
    if len(set(keys)) < len(keys):
        raise ValueError(
            "questions of several files share their strategy and number, so an answer could belong to either; give "
            "one answer file for each question file"
        )
    texts: dict[tuple[str, int | None], str] = {}
    for question_id, strategy, text in answers:
        if strategy is None and len(strategies) > 1:
            named = one_line(", ".join(sorted(strategies)), SHOWN_CHARACTERS)
            raise ValueError(
                f"the answer to question {question_id} names no strategy, but there are questions of {named}; give one "
                "answer file for each question file"
            )
        key = (strategy or next(iter(strategies)), question_id)
        if key in texts:
            raise ValueError(f"question {question_id} ({shown(key[0])}) is answered twice")
        texts[key] = text
    missing = [key for key in keys if key not in texts]
    surplus = texts.keys() - set(keys)
    if missing or surplus:
        example = next(iter([*missing, *sorted(surplus, key=str)]))
        raise ValueError(
            f"{len(missing)} of {len(keys)} questions have no answer and {len(surplus)} answers no question, for "
            f"example number {example[1]} ({shown(example[0])})"
        )
    return [texts[key] for key in keys]


def read_answered(
    question_files: Sequence[str | Path], answer_files: Sequence[str | Path]
) -> tuple[list[PopeQuestion], list[str]]:
    """Questions and the answers to them, in the same order.

    Args:
        question_files: POPE question files, usually one per strategy.
        answer_files: one answer file per question file, in the same order, or a single one for all questions, whose
            records then name the strategy.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the numbers of files do not fit, or questions and answers do not.
    """
    asked = [read_questions(path) for path in question_files]
    answered = [read_answers(path) for path in answer_files]
    if len(answered) == 1:
        asked = [[question for questions in asked for question in questions]]
    if len(asked) != len(answered):
        raise ValueError(
            f"there are {len(asked)} question files but {len(answered)} answer files; give one answer file for each "
            "question file, in the same order, or one for all"
        )
    texts: list[str] = []
    for questions, answers, path in zip(asked, answered, answer_files):
        try:
            texts += match_answers(questions, answers)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return [question for questions in asked for question in questions], texts
