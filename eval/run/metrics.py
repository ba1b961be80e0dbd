"""Which numbers a task reports, as functions of counts that add up over images.

Every metric is a ratio of sums, so any subset or resample of images gives its value by adding counts first: the same
definition for the corpus, for an interval and for a paired difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlm_guard.eval.run.records import Record
from vlm_guard.eval.tasks.pope.scoring import score_predictions

Counts = Mapping[str, np.ndarray]
Kind = Literal["share", "length", "count"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A reported number.

    Attributes:
        name: in results, for example "chair_i" or "pope.random.accuracy".
        label: in tables.
        kind: "share" is shown in percent, "length" with one decimal.
        better: which way is an improvement, or None where neither is one by itself.
        compute: the value from summed counts; works on arrays of sums of any shape.
    """

    name: str
    label: str
    kind: Kind
    better: Literal["higher", "lower"] | None
    compute: Callable[[Counts], np.ndarray]


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient, and 0 where the whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def _share(part: str, whole: str) -> Callable[[Counts], np.ndarray]:
    return lambda counts: ratio(counts[part], counts[whole])


def _harmonic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return ratio(2 * first * second, first + second)


def _chair_f1(counts: Counts) -> np.ndarray:
    recalled = counts["recalled_objects"]
    return _harmonic(ratio(recalled, counts["mentioned_objects"]), ratio(recalled, counts["objects"]))


CHAIR_METRICS: tuple[Metric, ...] = (
    Metric(
        name="chair_i",
        label="CHAIR_i",
        kind="share",
        better="lower",
        compute=_share("hallucinated_mentions", "mentions"),
    ),
    Metric(
        name="chair_s",
        label="CHAIR_s",
        kind="share",
        better="lower",
        compute=_share("hallucinated_captions", "captions"),
    ),
    Metric(name="recall", label="recall", kind="share", better="higher", compute=_share("recalled_objects", "objects")),
    Metric(
        name="precision",
        label="precision",
        kind="share",
        better="higher",
        compute=_share("recalled_objects", "mentioned_objects"),
    ),
    Metric(name="f1", label="F1", kind="share", better="higher", compute=_chair_f1),
    Metric(name="mean_words", label="words", kind="length", better=None, compute=_share("words", "captions")),
    Metric(name="mean_tokens", label="tokens", kind="length", better=None, compute=_share("tokens", "captions")),
    Metric(
        name="repetition",
        label="repetition",
        kind="share",
        better="lower",
        compute=_share("repetition", "captions"),
    ),
)


def chair_counts(record: Record) -> dict[str, float]:
    """The counts of one answered caption."""
    score = record["score"]
    nodes = {mention["node"] for mention in score["mentions"]}
    return {
        "captions": 1,
        "hallucinated_captions": score["chair_s"],
        "mentions": len(score["mentions"]),
        "hallucinated_mentions": sum(mention["hallucinated"] for mention in score["mentions"]),
        "mentioned_objects": len(nodes),
        "recalled_objects": len(nodes.intersection(score["objects"])),
        "objects": len(score["objects"]),
        "words": score["words"],
        "tokens": score["tokens"],
        "repetition": score["repeated_4_grams"],
    }


_POPE_RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed")
_POPE_LABELS = {"f1": "F1", "yes_ratio": "yes ratio"}


def pope_counts(record: Record) -> dict[str, float]:
    """The counts of one answered question, in every strategy that asks it."""
    score = record["score"]
    counts = score_predictions([score["label"]], [score["answer"]])
    kinds = {name: value for name, value in counts.to_dict()["counts"].items() if value}
    return {f"{strategy}.{name}": value for strategy in score["strategies"] for name, value in kinds.items()}


def _pope_rate(rate: str, strategy: str) -> Callable[[Counts], np.ndarray]:
    def compute(counts: Counts) -> np.ndarray:
        true_yes, false_yes, true_no, false_no, unparsed_yes, unparsed_no = (
            counts[f"{strategy}.{kind}"] for kind in _POPE_KINDS
        )
        questions = true_yes + false_yes + true_no + false_no + unparsed_yes + unparsed_no
        precision = ratio(true_yes, true_yes + false_yes)
        recall = ratio(true_yes, true_yes + false_no + unparsed_yes)
        values = {
            "accuracy": lambda: ratio(true_yes + true_no, questions),
            "precision": lambda: precision,
            "recall": lambda: recall,
            "f1": lambda: _harmonic(precision, recall),
            "yes_ratio": lambda: ratio(true_yes + false_yes, questions),
            "unparsed": lambda: ratio(unparsed_yes + unparsed_no, questions),
        }
        return values[rate]()

    return compute


_POPE_KINDS = ("true_yes", "false_yes", "true_no", "false_no", "unparsed_yes", "unparsed_no")


def pope_count_names(strategies: list[str]) -> list[str]:
    """Names of all counts of these strategies."""
    return [f"{strategy}.{kind}" for strategy in strategies for kind in _POPE_KINDS]


def pope_metrics(strategies: list[str]) -> tuple[Metric, ...]:
    """Every rate of every strategy, and their plain means ("pope.mean.accuracy")."""
    better: dict[str, Any] = {"yes_ratio": None, "unparsed": "lower"}
    metrics = []
    for rate in _POPE_RATES:
        by_strategy = [_pope_rate(rate, strategy) for strategy in strategies]
        label = _POPE_LABELS.get(rate, rate)
        entries = list(zip(strategies, by_strategy))
        if strategies:

            def mean(counts: Counts, rates: list = by_strategy) -> np.ndarray:
                return sum(rate(counts) for rate in rates) / len(rates)

            entries.append(("mean", mean))
        metrics += [
            Metric(
                name=f"pope.{strategy}.{rate}",
                label=f"{strategy} {label}",
                kind="share",
                better=better.get(rate, "higher"),
                compute=compute,
            )
            for strategy, compute in entries
        ]
    return tuple(metrics)
