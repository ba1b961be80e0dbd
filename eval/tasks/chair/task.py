"""CHAIR as a task: one caption per picture, scored by the objects it names (Rohrbach et al., EMNLP 2018)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_guard.eval.tasks.base import Record, Sample, SweepRule, Task
from vlm_guard.eval.tasks.chair.places import FIFTHS, complete_end, count_places, cut_record
from vlm_guard.eval.tasks.chair.plots import plot_chair, plot_mention_order
from vlm_guard.eval.tasks.chair.received import ChairDescribed, ChairScoreReceived
from vlm_guard.eval.tasks.chair.scoring import CaptionScore, ChairScorer, Mention, summarise
from vlm_guard.eval.tasks.chair.settings import ChairSettings
from vlm_guard.eval.tasks.shared.fair import FairPair
from vlm_guard.eval.tasks.shared.metric import Column, Counts, Metric, harmonic, ratio, share
from vlm_guard.eval.tasks.shared.registry import register_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlm_guard.eval.data.datasets import EvaluationData
    from vlm_guard.eval.tasks.shared.drawing import Drawn


def _f1(counts: Counts) -> np.ndarray:
    recalled = counts["recalled_objects"]
    return harmonic(ratio(recalled, counts["mentioned_objects"]), ratio(recalled, counts["objects"]))


CHAIR_METRICS: tuple[Metric, ...] = (
    Metric(
        name="chair_i",
        label="CHAIR_i",
        kind="share",
        better="lower",
        compute=share("hallucinated_mentions", "mentions"),
        needs="mentions",
    ),
    Metric(
        name="chair_s",
        label="CHAIR_s",
        kind="share",
        better="lower",
        compute=share("hallucinated_captions", "captions"),
        needs="mentions",  # captions that name nothing at all have no false mention either, which is no merit
    ),
    Metric(name="recall", label="recall", kind="share", better="higher", compute=share("recalled_objects", "objects")),
    Metric(
        name="precision",
        label="precision",
        kind="share",
        better="higher",
        compute=share("recalled_objects", "mentioned_objects"),
        needs="mentions",
    ),
    Metric(name="f1", label="F1", kind="share", better="higher", compute=_f1),
    Metric(name="mean_words", label="words", kind="length", better=None, compute=share("words", "captions")),
    Metric(name="mean_tokens", label="tokens", kind="length", better=None, compute=share("tokens", "captions")),
    Metric(
        name="repetition", label="repetition", kind="share", better="lower", compute=share("repetition", "captions")
    ),
    Metric(
        name="chair.per_100_words",
        label="hallucinated mentions per 100 words",
        kind="length",
        better="lower",
        compute=lambda counts: 100 * ratio(counts["hallucinated_mentions"], counts["words"]),
    ),
    *(
        Metric(
            name=f"chair.fifth_{fifth}.chair_i",
            label=f"CHAIR_i in fifth {fifth} of the text",
            kind="share",
            better="lower",
            compute=share(f"fifth_{fifth}.hallucinated", f"fifth_{fifth}.mentions"),
            needs=f"fifth_{fifth}.mentions",
        )
        for fifth in range(1, FIFTHS + 1)
    ),
    Metric(
        name="chair.complete.chair_i",
        label="CHAIR_i of complete sentences",
        kind="share",
        better="lower",
        compute=share("complete.hallucinated_mentions", "complete.mentions"),
        needs="complete.mentions",
    ),
    Metric(
        name="chair.complete.chair_s",
        label="CHAIR_s of complete sentences",
        kind="share",
        better="lower",
        compute=share("complete.hallucinated_captions", "captions"),
        needs="complete.mentions",
    ),
    Metric(
        name="chair.complete.recall",
        label="recall of complete sentences",
        kind="share",
        better="higher",
        compute=share("complete.recalled_objects", "objects"),
    ),
)

_MANY_SILENT = 0.1
"""The share of captions without a mention from which on a note says so."""
_EQUAL_LENGTH = {"chair_i": "chair.equal_length.chair_i", "recall": "chair.equal_length.recall"}


@register_task("chair")
class ChairTask(Task):
    """One caption per picture, scored with CHAIR in the text mode the data was read with."""

    help = "Objects that captions name and the picture does not show, with recall, length and repetition."
    source = "Object Hallucination in Image Captioning, EMNLP 2018, arXiv 1809.02156"
    table_title = "captions"
    Settings = ChairSettings
    Score = ChairScoreReceived
    Described = ChairDescribed
    columns = (
        Column(metric="chair_i", label="CHAIR_i ↓"),
        Column(metric="chair_s", label="CHAIR_s ↓"),
        Column(metric="recall", label="recall ↑"),
        Column(metric="f1", label="F1 ↑"),
        Column(metric="mean_words", label="words", kind="length"),
        Column(metric="repetition", label="repeat ↓"),
        Column(metric="chair.equal_length.chair_i", label="equal length ↓", kind="difference", better="lower"),
    )
    sweep = SweepRule(lower="chair_i", keep="recall", slack=0.005, shown=("chair_i", "chair_s", "recall", "mean_words"))

    def __init__(self, data: EvaluationData, settings: ChairSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        self._scorer = ChairScorer(data.objects, data.mode)

    def describe(self) -> dict[str, Any]:
        """Text mode, prompt and token limit."""
        return {"text_mode": self._scorer.mode, **super().describe()}

    def samples(self) -> list[Sample]:
        """One per picture."""
        return [
            Sample(key=f"chair/{image_id}", task=self.name, image_id=image_id, prompt=self.settings.prompt)
            for image_id in self.data.images
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The caption's CHAIR record with every mention's place."""
        score = self._scorer.score(sample.image_id, text).to_dict()
        return {name: value for name, value in score.items() if name not in ("image_id", "caption")}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """The counts of one answered caption."""
        score = record["score"]
        nodes = {mention["node"] for mention in score["mentions"]}
        text = record["text"]
        end = len(text) if record.get("finished", True) else complete_end(text)
        mentions = [(item["start"], item["end"], item["node"], item["hallucinated"]) for item in score["mentions"]]
        places = count_places(text, mentions, end)
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
            **{f"fifth_{place}.mentions": count for place, count in enumerate(places.mentions, 1)},
            **{f"fifth_{place}.hallucinated": count for place, count in enumerate(places.hallucinated, 1)},
            "complete.mentions": places.complete_mentions,
            "complete.hallucinated_mentions": places.complete_hallucinated,
            "complete.hallucinated_captions": places.complete_hallucinated > 0,
            "complete.recalled_objects": places.complete_recalled,
        }

    @classmethod
    def fair_pair(cls, baseline: Sequence[Record], other: Sequence[Record]) -> FairPair | None:
        """Both captions of a picture cut to the words of the shorter one, so that neither gains by being short."""
        known = {record["sample"]: record for record in baseline}
        pairs = [(known[record["sample"]], record) for record in other if record["sample"] in known]
        if not pairs:
            return None
        lengths = [min(first["score"]["words"], second["score"]["words"]) for first, second in pairs]
        return FairPair(
            what="the difference of CHAIR_i, both captions of a picture cut to the words of the shorter one",
            baseline=[cut_record(first, words) for (first, _), words in zip(pairs, lengths)],
            other=[cut_record(second, words) for (_, second), words in zip(pairs, lengths)],
            metrics=_EQUAL_LENGTH,
            facts={"mean_words": sum(lengths) / len(lengths)},
        )

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The same for all records."""
        return CHAIR_METRICS

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """CHAIR's integer counts and rates."""
        return summarise((caption_score(record) for record in records), described["text_mode"]).to_dict()

    @classmethod
    def notes(
        cls, described: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]], asked: int, pictures: int
    ) -> list[str]:
        """Methods of which many captions name nothing, where the baseline's do: no false mention is no merit then."""
        found = {label: _silent(summary) for label, summary in summaries.items()}
        usual = next(iter(found.values()), 0.0)
        return [
            f"{label}: {summary['captions_without_mention']} of {summary['captions']} captions name nothing"
            for label, summary in summaries.items()
            if found[label] == 1 or found[label] > _MANY_SILENT >= usual
        ]

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """Text mode, prompt and token limit."""
        mode, prompt, limit = (described[name] for name in ("text_mode", "prompt", "max_new_tokens"))
        return f'CHAIR in {mode} mode, prompt "{prompt}", at most {limit} tokens'

    @classmethod
    def plots(cls) -> dict[str, Callable[[Drawn], Figure]]:
        """CHAIR against recall and length, and mentions by their place."""
        return {"chair": plot_chair, "mention-order": plot_mention_order}

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The caption with its mentions, and the objects of the picture."""
        score = record["score"]
        return {
            "objects": score["objects"],
            "caption": {
                "text": record["text"],
                "mentions": [
                    [mention["start"], mention["end"], mention["node"], int(mention["hallucinated"])]
                    for mention in score["mentions"]
                ],
                "words": score["words"],
                "finished": record["finished"],
            },
        }


def _silent(summary: Mapping[str, Any]) -> float:
    """The share of a method's captions that name nothing; 0 in files of versions that did not count them."""
    return summary.get("captions_without_mention", 0) / max(1, summary["captions"])


def caption_score(record: Record) -> CaptionScore:
    """The CHAIR score of an answered caption's record."""
    score = record["score"]
    mentions = score["mentions"]
    return CaptionScore(
        image_id=record["image_id"],
        caption=record["text"],
        mentions=tuple(
            Mention(**{name: mention[name] for name in ("node", "text", "start", "end")}) for mention in mentions
        ),
        hallucinated=tuple(mention["hallucinated"] for mention in mentions),
        objects=tuple(score["objects"]),
        tokens=score["tokens"],
        words=score["words"],
        repeated_4_grams=score["repeated_4_grams"],
    )
