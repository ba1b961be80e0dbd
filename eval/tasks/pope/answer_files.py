"""Files of answers that hold several methods (`vlm-guard ask`), or their own questions (`ask`, lmms-eval's samples)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.lmms_eval_samples import plain_record
from vlm_guard.eval.tasks.pope.answer_checks import require_answers, require_same_questions
from vlm_guard.eval.tasks.pope.questions import PopeQuestion, read_questions
from vlm_guard.eval.tasks.pope.scoring import answer_in, match_answers
from vlm_guard.untrusted.json_files import read_records, text_field, whole_number
from vlm_guard.untrusted.printed_text import SHOWN_CHARACTERS, one_line, shown

MethodAnswers = dict[str, list[tuple[int | None, str | None, str]]]
"""Question id, strategy and text of answers, by the method that gave them; "" where the file names none."""

OWN_STRATEGY = "all"
"""What the questions of a file of answers count as where it does not say."""


def read_method_answers(path: str | Path, questions: Sequence[PopeQuestion] = ()) -> MethodAnswers:
    """The answers of a file by method, in its order.

    Args:
        path: the file.
        questions: questions of several strategies: where an answer does not say to which of them it belongs but how
            the question read (lmms-eval's samples), it is found by number and text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record has no answer, or the file is empty.
    """
    found: MethodAnswers = {}
    open_questions: dict[str, dict[int, list[PopeQuestion]]] = {}
    for number, record in read_records(path):
        where = f"{path}: record {number}"
        method = text_field(record, "method", where, optional=True)
        question_id, strategy, text = answer_in(record, where)
        if strategy is None and question_id is not None and questions:
            left = open_questions.setdefault(method, _by_number(questions))
            strategy = _strategy_of(left.get(question_id, []), plain_record(record, where).get("question"))
        found.setdefault(method, []).append((question_id, strategy, text))
    if not found:
        raise ValueError(f"{path} has no answers")
    return found


def _by_number(questions: Sequence[PopeQuestion]) -> dict[int, list[PopeQuestion]]:
    numbered: dict[int, list[PopeQuestion]] = {}
    for question in questions:
        numbered.setdefault(question.question_id, []).append(question)
    return numbered


def _strategy_of(left: list[PopeQuestion], asked: Any) -> str | None:
    """The strategy of the first of these questions that reads as it was asked, which is taken out; None without one.

    A question that several strategies share comes as often as it is asked, and each has the same right answer.
    """
    if not isinstance(asked, str):
        return None
    # The typo of a published file was put right in others.
    text = asked.strip().replace("imange", "image")
    for question in left:
        if text.startswith(question.text.replace("imange", "image")):
            left.remove(question)
            return question.strategy
    return None


def read_method_answered(
    question_files: Sequence[str | Path], answer_files: Sequence[str | Path]
) -> dict[str, tuple[list[PopeQuestion], list[str]]]:
    """Questions and the answers to them in the same order, by method.

    Args:
        question_files: POPE question files, usually one per strategy; none if the answers hold their questions.
        answer_files: one answer file per question file, in the same order, or a single one for all questions, whose
            records then name the strategy.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the numbers of files do not fit, questions and answers do not, files are of other methods, answers
            say that they are to other questions, or a file holds something else than answers.
    """
    require_answers(answer_files)
    if not question_files:
        return _with_own_questions(answer_files)
    asked = [read_questions(path) for path in question_files]
    if len(answer_files) == 1:
        asked = [[question for questions in asked for question in questions]]
    several = len({question.strategy for questions in asked for question in questions}) > 1
    joined = asked[0] if len(answer_files) == 1 and several else ()
    answered = [read_method_answers(path, joined) for path in answer_files]
    if len(asked) != len(answered):
        raise ValueError(
            f"there are {len(asked)} question files but {len(answered)} answer files; give one answer file for each "
            "question file, in the same order, or one for all"
        )
    methods = list(answered[0])
    for answers, path in zip(answered, answer_files):
        if set(answers) != set(methods):
            names = (one_line(", ".join(map(repr, group)), SHOWN_CHARACTERS) for group in (methods, answers))
            raise ValueError(
                f"{answer_files[0]} and {path} hold answers of other methods ({' and '.join(names)}); give files of "
                "the same ones"
            )
    texts: dict[str, list[str]] = {method: [] for method in methods}
    for questions, answers, path in zip(asked, answered, answer_files):
        for method in methods:
            try:
                texts[method] += match_answers(questions, answers[method])
            except ValueError as error:
                of = f" (method {shown(method)})" if len(methods) > 1 else ""
                raise ValueError(f"{path}{of}: {error}") from error
    files = {str(path): read_questions(path) for path in question_files}
    for place, path in enumerate(answer_files):
        require_same_questions(path, files, "" if len(answer_files) == 1 else str(question_files[place]))
    whole = [question for questions in asked for question in questions]
    return {method: (whole, texts[method]) for method in methods}


def _with_own_questions(answer_files: Sequence[str | Path]) -> dict[str, tuple[list[PopeQuestion], list[str]]]:
    """Answers whose records hold the right answer, with the questions made of them."""
    found: dict[str, tuple[list[PopeQuestion], list[str]]] = {}
    for path in answer_files:
        for number, record in read_records(path):
            where = f"{path}: record {number}"
            questions, texts = found.setdefault(text_field(record, "method", where, optional=True), ([], []))
            _, strategy, text = answer_in(record, where)
            questions.append(_own_question(plain_record(record, where), where, strategy, len(questions) + 1))
            texts.append(text)
    if not found:
        raise ValueError(f"{', '.join(map(str, answer_files))}: there are no answers")
    return found


def _own_question(record: dict[str, Any], where: str, strategy: str | None, place: int) -> PopeQuestion:
    label = record.get("label")
    if not isinstance(label, str) or label.strip().lower() not in ("yes", "no"):
        raise ValueError(
            f"{where}: 'label' is {shown(label) if label is not None else 'missing'}; without --questions every answer "
            "must say what is right, yes or no (vlm-guard ask and lmms-eval do so)"
        )
    given = record.get("question_id")
    return PopeQuestion(
        question_id=place if given is None else whole_number(given, "question_id", where),
        image_id=None,
        image=str(record.get("image", "")),
        text=text_field(record, "question", where, optional=True),
        label=label.strip().lower(),
        object="",
        strategy=strategy or OWN_STRATEGY,
    )
