"""POPE as a task: is the object in the image, yes or no? (Li et al., EMNLP 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vlm_guard.eval.data.datasets import hash_lines
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.pope.parsers import PARSERS, parse_answer
from vlm_guard.eval.tasks.pope.plots import plot_pope
from vlm_guard.eval.tasks.pope.questions import PopeQuestion, build_questions, read_questions, with_suffix
from vlm_guard.eval.tasks.pope.received import PopeDescribed, PopeScoreReceived
from vlm_guard.eval.tasks.pope.scoring import PopeSummary, score_predictions
from vlm_guard.eval.tasks.pope.settings import STRATEGIES, PopeSettings
from vlm_guard.eval.tasks.shared.fair import FairPair, yes_matched
from vlm_guard.eval.tasks.shared.metric import Better, Column, Counts, Metric, harmonic, ratio
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings
from vlm_guard.eval.tasks.shared.yes_no import answer_kind

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
    title = "POPE"
    Settings: ClassVar[type[TaskSettings]] = PopeSettings
    Score = PopeScoreReceived
    Described = PopeDescribed
    columns: ClassVar[tuple[Column, ...]] = (
        Column(metric="pope.mean.accuracy", label="POPE acc ↑"),
        Column(metric="pope.mean.f1", label="POPE F1 ↑"),
        Column(metric="pope.adversarial.f1", label="adv F1 ↑"),
        Column(metric="pope.mean.yes_ratio", label="yes"),
        Column(metric="pope.mean.unparsed", label="unparsed ↓"),
        Column(metric="pope.over_control.f1", label="F1 − control ↑", kind="difference", better="higher"),
    )
    watches_yes_no = True

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        chosen = self.settings
        if chosen.parser not in PARSERS:
            raise ValueError(f"the answer parser is {chosen.parser!r}; it must be one of {', '.join(PARSERS)}")
        self.questions, self.origin = self.find_questions()
        if not self.questions:
            raise ValueError("none of the POPE questions is about an image of this data")
        self._by_key = self._grouped()

    def find_questions(self) -> tuple[list[PopeQuestion], str]:
        """The questions about pictures of the data, and in words where they come from."""
        chosen, images = self.settings, self.data.images
        if chosen.questions:
            read = [question for path in chosen.questions for question in read_questions(path)]
            return [question for question in read if question.image_id in images], "question files"
        objects = {image_id: self.data.objects[image_id] for image_id in images}
        names = {image_id: path.name for image_id, path in images.items()}
        built = build_questions(objects, chosen.strategies, chosen.per_image, self.seed, image_names=names)
        return built, f"built, {chosen.per_image} per image and strategy, seed {self.seed}"

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
            asked = groups.setdefault(f"{self.name}/{question.image_id}/{question.text}", [])
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
        counted = {f"{strategy}.{name}": value for strategy in score["strategies"] for name, value in kinds.items()}
        for parser in PARSERS:
            kind = answer_kind(score["label"], parse_answer(record["text"], parser, score["label"]))
            counted |= {f"{strategy}@{parser}.{kind}": 1 for strategy in score["strategies"]}
        return counted

    @classmethod
    def fair_pair(cls, baseline: Sequence[Record], other: Sequence[Record]) -> FairPair | None:
        """The baseline with a constant leaning to yes that makes it say yes as often as the method."""
        names = {f"{cls.name}.mean.{rate}": f"{cls.name}.over_control.{rate}" for rate in ("accuracy", "f1")}
        return yes_matched(baseline, other, names, lambda record: len(record["score"]["strategies"]))

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Every rate of every strategy in these records, and their plain means."""
        return pope_metrics(strategies_of(records), cls.name)

    @classmethod
    def comparable_metrics(cls, first: Sequence[Record], second: Sequence[Record]) -> tuple[Metric, ...]:
        """Those of the strategies that both have: one whose pictures could not be read has no difference."""
        known = strategies_of(first)
        return pope_metrics([name for name in strategies_of(second) if name in known], cls.name)

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """POPE's scores per strategy, and the mean."""
        pairs: dict[str, list[tuple[str, str]]] = {name: [] for name in strategies_of(records)}
        for record in records:
            score = record["score"]
            for strategy in score["strategies"]:
                pairs[strategy].append((score["label"], score["answer"]))
        strategies = {name: score_predictions(*zip(*asked)) for name, asked in pairs.items()}
        summary = PopeSummary(parser=described["parser"], strategies=strategies).to_dict()
        return {**summary, "metric": cls.title, "parsers": _by_parser(records)}

    @classmethod
    def notes(
        cls, described: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]], asked: int, pictures: int
    ) -> list[str]:
        """How many pictures have no questions: POPE asks only about those with objects enough on both sides."""
        if asked >= pictures or not str(described.get("origin", "")).startswith("built"):
            return []
        few = f"{pictures - asked} of {pictures} pictures have too few objects (or too few absent ones)"
        return [f"{few} for {cls.title}'s questions"]

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """Suffix and parser."""
        suffix = described["suffix"].strip()
        asked = f'with "{suffix}"' if suffix else "without suffix"
        return f"{cls.title} {asked}, read by the {described['parser']} parser"

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
_PARSER_RATES = ("accuracy", "f1", "yes_ratio")
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


def _label(name: str, rate: str) -> str:
    said, (kind, _, parser) = _LABELS.get(rate, rate), name.partition("_")
    return f"{said} by the {parser} parser" if kind == "read" and parser else f"{name} {said}"


def _by_parser(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """What the same answers give when they are read by each of the parsers: means over the strategies."""
    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {parser: {} for parser in PARSERS}
    for record in records:
        score = record["score"]
        for parser, strategies in pairs.items():
            answer = parse_answer(record["text"], parser, score["label"])
            for strategy in score["strategies"]:
                strategies.setdefault(strategy, []).append((score["label"], answer))
    return {
        parser: PopeSummary(
            parser=parser, strategies={name: score_predictions(*zip(*asked)) for name, asked in strategies.items()}
        ).mean
        for parser, strategies in pairs.items()
    }


def pope_metrics(strategies: Sequence[str], task: str = "pope") -> tuple[Metric, ...]:
    """Every rate of every strategy, and their plain means ("pope.mean.accuracy"), also by each parser."""
    better: dict[str, Better] = {"yes_ratio": None, "unparsed": "lower"}
    groups = {strategy: [strategy] for strategy in strategies}
    read: dict[str, list[str]] = {}
    if strategies:
        groups["mean"] = list(strategies)
        read = {f"read_{parser}": [f"{strategy}@{parser}" for strategy in strategies] for parser in PARSERS}
    wanted = [(name, group, rate) for rate in _PARSER_RATES for name, group in read.items()]
    wanted += [(name, group, rate) for rate in _RATES for name, group in groups.items()]
    return tuple(
        Metric(
            name=f"{task}.{name}.{rate}",
            label=_label(name, rate),
            kind="share",
            better=better.get(rate, "higher"),
            compute=partial(_rate, rate, group),
        )
        for name, group, rate in wanted
    )
