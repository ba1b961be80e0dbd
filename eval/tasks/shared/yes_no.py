"""Yes/no questions as every such task counts them, yes being positive, and a reader of question files of one's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlm_guard.eval.tasks.shared.metric import Better, Counts, Metric, harmonic, ratio
from vlm_guard.untrusted.json_files import read_records, text_field
from vlm_guard.untrusted.paths import Inside, relative_name
from vlm_guard.untrusted.printed_text import shown

Label = Literal["yes", "no"]

RATES = ("accuracy", "precision", "recall", "f1", "true_negative_rate", "yes_ratio", "unparsed")
"""What `yes_no_metrics` gives for a group. Recall is the true positive rate."""

_KINDS = ("true_yes", "false_yes", "true_no", "false_no", "unparsed_yes", "unparsed_no")
_BETTER: dict[str, Better] = {"yes_ratio": None, "unparsed": "lower"}
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")
_LONGEST_GROUP = 100
_NAMES = {"question": ("question", "text", "query"), "answer": ("answer", "label", "gt_answer")}


@dataclass(frozen=True, kw_only=True)
class YesNoQuestion:
    """One yes/no question about a picture.

    Attributes:
        key: its id in the file, else its place from 1, as text.
        image: picture file.
        text: the question.
        label: the right answer, yes or no.
        group: what kind of question it is; empty where the file does not say.
    """

    key: str
    image: Path
    text: str
    label: Label
    group: str


def answer_kind(label: str, answer: str) -> str:
    """Which of the six counts an answer (yes, no, or anything else: unparsed) to a question adds to."""
    if answer not in ("yes", "no"):
        return f"unparsed_{label}"
    return f"{'true' if answer == label else 'false'}_{answer}"


def count_answer(label: str, answer: str, groups: Sequence[str]) -> dict[str, int]:
    """What one answered question adds to the counts of every group that it belongs to."""
    kind = answer_kind(label, answer)
    return {f"{group}.{kind}": 1 for group in groups}


def _rate(rate: str, group: str, counts: Counts) -> np.ndarray:
    true_yes, false_yes, true_no, false_no, unparsed_yes, unparsed_no = (counts[f"{group}.{kind}"] for kind in _KINDS)
    label_yes, label_no = true_yes + false_no + unparsed_yes, true_no + false_yes + unparsed_no
    precision, recall = ratio(true_yes, true_yes + false_yes), ratio(true_yes, label_yes)
    values: dict[str, Callable[[], np.ndarray]] = {
        "accuracy": lambda: ratio(true_yes + true_no, label_yes + label_no),
        "precision": lambda: precision,
        "recall": lambda: recall,
        "f1": lambda: harmonic(precision, recall),
        "true_negative_rate": lambda: ratio(true_no, label_no),
        "yes_ratio": lambda: ratio(true_yes + false_yes, label_yes + label_no),
        "unparsed": lambda: ratio(unparsed_yes + unparsed_no, label_yes + label_no),
    }
    return values[rate]()


def rate_of(rate: str, group: str) -> Callable[[Counts], np.ndarray]:
    """One of `RATES` of a group, for `Metric.compute`."""
    return partial(_rate, rate, group)


def yes_no_metrics(task: str, group: str, rates: Sequence[str] = RATES) -> tuple[Metric, ...]:
    """The rates of a group as metrics "TASK.GROUP.RATE"."""
    return tuple(
        Metric(
            name=f"{task}.{group}.{rate}",
            label=f"{group} {rate.replace('_', ' ')}",
            kind="share",
            better=_BETTER.get(rate, "higher"),
            compute=rate_of(rate, group),
        )
        for rate in rates
    )


def summary_of(counted: Mapping[str, float], group: str) -> dict[str, Any]:
    """Questions and rates of a group of summed counts, as JSON can hold them; rates are fractions."""
    counts = {f"{group}.{kind}": np.asarray(float(counted.get(f"{group}.{kind}", 0))) for kind in _KINDS}
    rates = {rate: float(_rate(rate, group, counts)) for rate in RATES}
    return {"questions": int(sum(float(value) for value in counts.values())), **rates}


def read_yes_no(path: str | Path) -> list[YesNoQuestion]:
    """The questions of a file (JSONL, or a JSON list), in its order; the pictures are not opened.

    A record has `image` (a picture file, relative to the file's folder and inside it), `question` (or `text`, `query`)
    and `answer` (or `label`, `gt_answer`: yes or no, true or false, 1 or 0); it may have `id` (or `question_id`) and
    `group`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks something, an id stands twice, or a picture lies outside of the file's folder.
    """
    path = Path(path)
    inside = Inside(path.parent)
    questions: dict[str, YesNoQuestion] = {}
    for number, record in read_records(path):
        question = _read(record, f"{path}: record {number}", number, inside)
        if question.key in questions:
            raise ValueError(
                f"{path}: record {number} has the id {shown(question.key)}, which stands in the file before"
            )
        questions[question.key] = question
    if not questions:
        raise ValueError(f"{path} has no questions")
    return list(questions.values())


def _read(record: dict[str, Any], where: str, number: int, inside: Inside) -> YesNoQuestion:
    names = {name: next((key for key in keys if key in record), None) for name, keys in _NAMES.items()}
    question, answer = names["question"], names["answer"]
    if question is None or answer is None or "image" not in record:
        raise ValueError(f"{where} needs image, question and answer (yes or no); it has {shown(list(record))}")
    name = relative_name(text_field(record, "image", where), where)
    key = record.get("id", record.get("question_id"))
    if key is not None and (isinstance(key, bool) or not isinstance(key, int | str)):
        raise ValueError(f"{where}: the id is {shown(key)}; it must be a whole number or text")
    group = text_field(record, "group", where, optional=True)
    if not group.isprintable() or len(group) > _LONGEST_GROUP:
        raise ValueError(f"{where}: the group {shown(group)} must be at most {_LONGEST_GROUP} signs that can be shown")
    return YesNoQuestion(
        key=str(number if key is None else key),
        image=inside.check(inside.folder / name),
        text=text_field(record, question, where),
        label=read_label(record[answer], where),
        group=group,
    )


def read_label(value: Any, where: str) -> Label:
    """Yes or no from what files call them: yes/no, true/false, 1/0, in any case.

    Raises:
        ValueError: it is something else.
    """
    text = str(value).strip().lower()
    if text in _YES:
        return "yes"
    if text in _NO:
        return "no"
    raise ValueError(f"{where}: the answer is {shown(value)}; it must be yes or no")


def numbered_pictures(questions: Sequence[YesNoQuestion]) -> tuple[dict[int, Path], dict[int, list[YesNoQuestion]]]:
    """Every picture by a number from 1 in the order they are first asked about, and the questions about each."""
    by_picture: dict[Path, list[YesNoQuestion]] = {}
    for question in questions:
        by_picture.setdefault(question.image, []).append(question)
    asked = dict(enumerate(by_picture.values(), start=1))
    return {number: items[0].image for number, items in asked.items()}, asked
