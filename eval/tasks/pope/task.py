"""POPE as a task: is the object in the image, yes or no? (Li et al., EMNLP 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_guard.eval.data.datasets import hash_lines
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.pope.parsers import PARSERS, parse_answer
from vlm_guard.eval.tasks.pope.plots import plot_pope
from vlm_guard.eval.tasks.pope.questions import PopeQuestion, build_questions, read_questions, with_suffix
from vlm_guard.eval.tasks.pope.received import PopeDescribed, PopeScoreReceived
from vlm_guard.eval.tasks.pope.scoring import PopeSummary, score_predictions
from vlm_guard.eval.tasks.pope.settings import STRATEGIES, PopeSettings
from vlm_guard.eval.tasks.shared.metric import Better, Column, Counts, Metric, harmonic, ratio
from vlm_guard.eval.tasks.shared.registry import register_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlm_guard.eval.data.datasets import EvaluationData
    from vlm_guard.eval.tasks.shared.drawing import Drawn
    from vlm_guard.eval.tasks.shared.settings import TaskSettings


@register_task("pope")
class PopeTask(Task):
    """POPE's yes/no questions, built from the objects of the pictures or read from published files.

    A question that several strategies share (their positives are the same) is asked once and counted in each.

    Raises:
        ValueError: the parser or suffix is unknown, or no question is about a picture of the data.
    """

    help = "Yes/no questions about objects that are in the picture and objects that are not."
    source = "Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023, arXiv 2305.10355"
    table_title = "yes/no"
    Settings = PopeSettings
    Score = PopeScoreReceived
    Described = PopeDescribed
    columns = (
        Column(metric="pope.mean.accuracy", label="POPE acc ↑"),
        Column(metric="pope.mean.f1", label="POPE F1 ↑"),
        Column(metric="pope.adversarial.f1", label="adv F1 ↑"),
        Column(metric="pope.mean.yes_ratio", label="yes"),
        Column(metric="pope.mean.unparsed", label="unparsed ↓"),
    )

    def __init__(self, data: EvaluationData, settings: PopeSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        chosen = self.settings
        if chosen.parser not in PARSERS:
            raise ValueError(f"the answer parser is {chosen.parser!r}; it must be one of {', '.join(PARSERS)}")
        if chosen.questions:
            read = [question for path in chosen.questions for question in read_questions(path)]
            self.questions = [question for question in read if question.image_id in data.images]
            self.origin = "question files"
        else:
            objects = {image_id: data.objects[image_id] for image_id in data.images}
            names = {image_id: path.name for image_id, path in data.images.items()}
            self.questions = build_questions(objects, chosen.strategies, chosen.per_image, seed, image_names=names)
            self.origin = f"built, {chosen.per_image} per image and strategy, seed {seed}"
        if not self.questions:
            raise ValueError("none of the POPE questions is about an image of this data")
        self._by_key = self._grouped()

    @classmethod
    def asked_images(cls, settings: TaskSettings) -> list[int] | None:
        """The images of the question files, in the order they are first asked about; None for built questions."""
        if not isinstance(settings, PopeSettings) or not settings.questions:
            return None
        questions = [question for path in settings.questions for question in read_questions(path)]
        return list(dict.fromkeys(question.image_id for question in questions if question.image_id is not None))

    def _grouped(self) -> dict[str, list[PopeQuestion]]:
        """The questions by sample key: those with the same text about the same picture are one sample."""
        order = {image_id: place for place, image_id in enumerate(self.data.images)}
        groups: dict[str, list[PopeQuestion]] = {}
        for question in sorted(self.questions, key=lambda item: order[_image(item)]):
            asked = groups.setdefault(f"pope/{question.image_id}/{question.text}", [])
            if asked and asked[0].label != question.label:
                raise ValueError(
                    f"{question.text!r} about image {question.image_id} is labelled yes and no; the question files "
                    "contradict each other"
                )
            asked.append(question)
        return groups

    def describe(self) -> dict[str, Any]:
        """Questions (by hash), suffix, parser and token limit."""
        return {
            "questions": len(self.questions),
            "strategies": list(dict.fromkeys(question.strategy for question in self.questions)),
            "origin": self.origin,
            "questions_sha256": self._hash,
            "suffix": with_suffix("", self.settings.suffix),
            "parser": self.settings.parser,
            "max_new_tokens": self.max_new_tokens,
        }

    @cached_property
    def _hash(self) -> str:
        return hash_lines(f"{item.image_id} {item.strategy} {item.label} {item.text}" for item in self.questions)

    def samples(self) -> list[Sample]:
        """One per picture and distinct question text."""
        suffix = self.settings.suffix
        return [
            Sample(key=key, task=self.name, image_id=_image(asked[0]), prompt=with_suffix(asked[0].text, suffix))
            for key, asked in self._by_key.items()
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The answer as read, and the questions it answers with their labels."""
        asked = self._by_key[sample.key]
        return {
            "answer": parse_answer(text, self.settings.parser, asked[0].label),
            "label": asked[0].label,
            "object": asked[0].object,
            "strategies": [question.strategy for question in asked],
        }

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """The counts of one answered question, in every strategy that asks it."""
        score = record["score"]
        counts = score_predictions([score["label"]], [score["answer"]])
        kinds = {name: value for name, value in counts.to_dict()["counts"].items() if value}
        return {f"{strategy}.{name}": value for strategy in score["strategies"] for name, value in kinds.items()}

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Every rate of every strategy in these records, and their plain means."""
        return pope_metrics(strategies_of(records))

    @classmethod
    def comparable_metrics(cls, first: Sequence[Record], second: Sequence[Record]) -> tuple[Metric, ...]:
        """Those of the strategies that both have: one whose pictures could not be read has no difference."""
        known = strategies_of(first)
        return pope_metrics([name for name in strategies_of(second) if name in known])

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """POPE's scores per strategy, and the mean."""
        pairs: dict[str, list[tuple[str, str]]] = {name: [] for name in strategies_of(records)}
        for record in records:
            score = record["score"]
            for strategy in score["strategies"]:
                pairs[strategy].append((score["label"], score["answer"]))
        strategies = {name: score_predictions(*zip(*asked)) for name, asked in pairs.items()}
        return PopeSummary(parser=described["parser"], strategies=strategies).to_dict()

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """Suffix and parser."""
        suffix = described["suffix"].strip()
        asked = f'with "{suffix}"' if suffix else "without suffix"
        return f"POPE {asked}, read by the {described['parser']} parser"

    @classmethod
    def plots(cls) -> dict[str, Callable[[Drawn], Figure]]:
        """POPE's ladder of strategies."""
        return {"pope": plot_pope}

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with the strategies that ask it."""
        return {**super().page_entry(record), "groups": record["score"]["strategies"]}


def strategies_of(records: Sequence[Record]) -> list[str]:
    """The strategies in these records, in their usual order."""
    found = {name for record in records for name in record["score"]["strategies"]}
    known = [name for name in STRATEGIES if name in found]
    return known + sorted(found - set(known))


def _image(question: PopeQuestion) -> int:
    """The number of the picture that a question of this data is about."""
    if question.image_id is None:
        raise ValueError(f"the picture of question {question.question_id} has no number: {question.image!r}")
    return question.image_id


_RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed")
_LABELS = {"f1": "F1", "yes_ratio": "yes ratio"}
_KINDS = ("true_yes", "false_yes", "true_no", "false_no", "unparsed_yes", "unparsed_no")


def _rate(rate: str, strategies: Sequence[str], counts: Counts) -> np.ndarray:
    """A rate of each strategy, averaged over the strategies."""
    total = np.zeros(())
    for strategy in strategies:
        total = total + _rate_of(rate, strategy, counts)
    return total / np.float64(len(strategies))


def _rate_of(rate: str, strategy: str, counts: Counts) -> np.ndarray:
    true_yes, false_yes, true_no, false_no, unparsed_yes, unparsed_no = (
        counts[f"{strategy}.{kind}"] for kind in _KINDS
    )
    questions = true_yes + false_yes + true_no + false_no + unparsed_yes + unparsed_no
    precision = ratio(true_yes, true_yes + false_yes)
    recall = ratio(true_yes, true_yes + false_no + unparsed_yes)
    values: dict[str, Callable[[], np.ndarray]] = {
        "accuracy": lambda: ratio(true_yes + true_no, questions),
        "precision": lambda: precision,
        "recall": lambda: recall,
        "f1": lambda: harmonic(precision, recall),
        "yes_ratio": lambda: ratio(true_yes + false_yes, questions),
        "unparsed": lambda: ratio(unparsed_yes + unparsed_no, questions),
    }
    return values[rate]()


def pope_metrics(strategies: Sequence[str]) -> tuple[Metric, ...]:
    """Every rate of every strategy, and their plain means ("pope.mean.accuracy")."""
    better: dict[str, Better] = {"yes_ratio": None, "unparsed": "lower"}
    groups = {strategy: [strategy] for strategy in strategies}
    if strategies:
        groups["mean"] = list(strategies)
    return tuple(
        Metric(
            name=f"pope.{name}.{rate}",
            label=f"{name} {_LABELS.get(rate, rate)}",
            kind="share",
            better=better.get(rate, "higher"),
            compute=partial(_rate, rate, group),
        )
        for rate in _RATES
        for name, group in groups.items()
    )
