"""Grounding: do the scores of what a caption mentions tell what is in the picture from what is not?

Mentions are MSCOCO's objects as CHAIR reads them, and CHAIR's truth is theirs. A detector proves nothing unless it
beats the place in the caption: late mentions are wrong far more often. So every score stands beside `position`, and
inside fifths of the caption, where early mentions are not compared with late ones.

Of pictures without labels (`--data folder:`) there is no truth, so there is no AUROC: then the numbers are those of
`vlm_guard.eval.tasks.grounding.unlabelled`, and mentions may be any nouns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import field_validator

from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.chair.settings import CAPTION_PROMPT
from vlm_guard.eval.tasks.grounding.counts import POSITION, SCORE, grounding_metrics, histograms, judged, mention_counts
from vlm_guard.eval.tasks.grounding.curves import risk_coverage
from vlm_guard.eval.tasks.grounding.finders import COCO, finder_named
from vlm_guard.eval.tasks.grounding.plots import plot_risk_coverage
from vlm_guard.eval.tasks.grounding.received import GroundingDescribed, GroundingScoreReceived
from vlm_guard.eval.tasks.grounding.repairing import repair_counts, repair_losses, repair_metrics, repair_record
from vlm_guard.eval.tasks.grounding.unlabelled import doubt_counts, doubt_metrics, doubt_summary, has_truth
from vlm_guard.eval.tasks.shared.metric import Column, Metric
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting
from vlm_guard.grounding.score import fit_weights, name_of
from vlm_guard.grounding.settings import PARTS, REPAIRS, Grounding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlm_guard.eval.data.datasets import EvaluationData
    from vlm_guard.eval.tasks.shared.drawing import Drawn
    from vlm_guard.grounding.grounded_answer import GroundedAnswer

# Points of the risk-coverage curve that results hold.
_COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class GroundingSettings(TaskSettings):
    """How captions are asked for and what is measured of their mentions."""

    prompt: str = setting(CAPTION_PROMPT, "Instruction for captions.")
    max_new_tokens: int = setting(512, "Token limit of captions.", ge=1)
    parts: list[str] = setting(["lens", "self_check"], f"What scores are made of: {', '.join(PARTS)}.")
    words: Literal["coco", "nouns"] = setting(
        "coco", "What counts as a mention: MSCOCO's objects, or on pictures without labels nouns of any kind."
    )
    lens_layers: list[int] = setting(
        [], "Layers that the lens reads, 0 to the model's depth; none for those of its profile, or four of them."
    )
    repair: str = setting("drop", f"How doubtful mentions are taken out: {', '.join(REPAIRS)}, or none.")

    @field_validator("repair")
    @classmethod
    def _known_repair(cls, value: str) -> str:
        if value not in (*REPAIRS, "none"):
            raise ValueError(f"repair is {value!r}; allowed: {', '.join(REPAIRS)}, none")
        return value

    @field_validator("lens_layers", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """The command line gives texts."""
        given = value if isinstance(value, list) else [value]
        return [int(layer) if isinstance(layer, str) and layer.strip().isdecimal() else layer for layer in given]

    @field_validator("parts")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        unknown = [part for part in value if part not in PARTS]
        if unknown or not value:
            raise ValueError(f"parts are {', '.join(value) or 'none'}; allowed: {', '.join(PARTS)}")
        return value


@register_task("grounding")
class GroundingTask(Task):
    """One caption per picture; every object it mentions is scored."""

    help = "How well the scores of mentioned objects tell what is in the picture from what is not."
    source = "measures: this project; parts: arXiv 2410.02762 (lens), arXiv 2305.10355 (the question)"
    table_title = "scored captions"
    data_kinds = ("folder", "scenes", "coco")
    data_help = "scenes:SPLIT[:SEED], coco:FOLDER, or without labels folder:FOLDER or folder:LIST.jsonl"
    Settings = GroundingSettings
    Score = GroundingScoreReceived
    Described = GroundingDescribed
    columns = (
        Column(metric="grounding.auroc.score", label="AUROC ↑"),
        Column(metric="grounding.auroc.position", label="by place"),
        Column(metric="grounding.auroc_in_fifths.score", label="in fifths ↑"),
        Column(metric="grounding.auroc_in_fifths.position", label="by place"),
        Column(metric="grounding.aupr.score", label="AUPR ↑"),
        Column(metric="grounding.aurc.score", label="risk area ↓"),
        Column(metric="grounding.ece", label="ECE ↓"),
        Column(metric="grounding.repair.before.chair_i", label="CHAIR_i ↓"),
        Column(metric="grounding.repair.after.chair_i", label="repaired ↓"),
        Column(metric="grounding.repair.change.recall", label="recall, change"),
        Column(metric="grounding.mentions", label="mentions", kind="length"),
        Column(metric="grounding.doubtful", label="doubtful"),
        Column(metric="grounding.answers_doubtful", label="answers with doubt"),
        Column(metric="grounding.mean_score", label="mean score"),
        Column(metric="grounding.words_kept", label="words kept"),
    )

    def __init__(self, data: EvaluationData, settings: TaskSettings | None = None, seed: int = 0) -> None:
        super().__init__(data, settings, seed)
        self._labelled = data.kind != "folder"
        if self._labelled and self.settings.words != COCO:
            raise ValueError(
                f"grounding.words is {self.settings.words}, but the labels of {data.name} know MSCOCO's objects only, "
                "so whether other nouns are right is not known; leave grounding.words out, or give --data folder:FOLDER"
            )
        self._find = finder_named(self.settings.words)

    def describe(self) -> dict[str, Any]:
        """The settings; without labels that there are none, and which words count."""
        described = super().describe()
        if not self.settings.lens_layers:
            del described["lens_layers"]  # the model's own; runs of earlier versions do not say it either
        if self._labelled:
            del described["words"]  # always the same there, and runs of earlier versions do not say it
            return described
        return {**described, "labels": False}

    def samples(self) -> list[Sample]:
        """One per picture."""
        return [
            Sample(key=f"grounding/{image_id}", task=self.name, image_id=image_id, prompt=self.settings.prompt)
            for image_id in self.data.images
        ]

    def grounding(self) -> Grounding:
        """How mentions are found, scored and taken out."""
        repair = None if self.settings.repair == "none" else self.settings.repair
        layers = tuple(self.settings.lens_layers) or None
        return Grounding(parts=tuple(self.settings.parts), find=self._find, repair=repair, lens_layers=layers)

    def scored(self, answer: GroundedAnswer) -> dict[str, Any]:
        """The scored mentions of an answer, and the answer without the doubtful ones."""
        mended = None if answer.repaired is None else repair_record(answer.text, answer.repaired, self._find)
        mentions = [mention.to_dict() for mention in answer.mentions]
        return {"mentions": mentions, "length": len(answer.text), "repaired": mended}

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The objects of the picture, None where it has no labels; what `scored` gave stands beside them."""
        return {"objects": sorted(self.data.objects[sample.image_id]) if self._labelled else None}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """The histograms of the scored mentions, and what repair did; without labels mentions by verdict."""
        words = len(record["text"].split())
        if not has_truth(record["score"]):
            return doubt_counts(record["score"], words)
        return mention_counts(judged(record["score"])) | repair_counts(record["score"], words)

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The numbers of the score, of every part, and of the place, then of the repair; without labels, of doubt."""
        repaired = any(record["score"].get("repaired") is not None for record in records)
        if not all(has_truth(record["score"]) for record in records):
            return doubt_metrics(repaired=repaired)
        return grounding_metrics(measured_values(records)) + (repair_metrics() if repaired else ())

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """How many mentions there are, how often they are wrong by fifth, the curve, and weights fitted to them."""
        repairs = {"removed": _how_often(records, "removed"), "faults": _how_often(records, "faults")}
        if not all(has_truth(record["score"]) for record in records):
            return doubt_summary(records) | repairs
        mentions = [mention for record in records for mention in judged(record["score"])]
        unchecked = sum(mention["score"] is None for record in records for mention in record["score"]["mentions"])
        counts = {name: np.asarray(value) for name, value in cls.image_counts(records).items()}
        good, bad = histograms(_WithZeros(counts), SCORE)
        coverage, risk = risk_coverage(good.sum(-2), bad.sum(-2))
        fifths = [int(part.sum()) for part in bad], [int(part.sum()) for part in good + bad]
        return {
            "captions": len(records),
            "mentions": len(mentions),
            "hallucinated_mentions": sum(not mention.good for mention in mentions),
            "unchecked_mentions": unchecked,
            "hallucinated_by_fifth": fifths[0],
            "mentions_by_fifth": fifths[1],
            "risk_at_coverage": {f"{at:.1f}": float(np.interp(at, coverage, risk)) for at in _COVERAGES},
            **repairs,
            "lost_objects": repair_losses(records),
            "fitted_weights": fitted_weights(mentions, described["parts"]),
        }

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """What was measured."""
        if not described.get("labels", True):
            words = "MSCOCO's objects" if described.get("words") == COCO else "nouns"
            return (
                f"scores of {words} from {' and '.join(described['parts'])}; no labels, so nothing says what is right"
            )
        return (
            f"scores of MSCOCO's objects from {' and '.join(described['parts'])}; AUROC: those that are there score "
            "higher; AUPR: finding those that are not; by place: the earlier, the surer"
        )

    @classmethod
    def plots(cls) -> dict[str, Callable[[Drawn], Figure]]:
        """Risk against coverage."""
        return {"risk-coverage": plot_risk_coverage}

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The caption with its mentions, and the objects of the picture; without labels doubtful ones are marked."""
        score = record["score"]
        known = has_truth(score)
        objects = set(score["objects"] or ())
        marks = [
            mention["noun"] not in objects if known else mention["verdict"] == "doubtful"
            for mention in score["mentions"]
        ]
        return {
            "objects": score["objects"] or [],
            "caption": {
                "text": record["text"],
                "mentions": [
                    [mention["start"], mention["end"], mention["noun"], int(mark)]
                    for mention, mark in zip(score["mentions"], marks)
                ],
                "words": len(record["text"].split()),
                "finished": record["finished"],
                **({} if known else {"unlabelled": True}),
            },
        }


def measured_values(records: Sequence[Record]) -> list[str]:
    """The values that records hold, the score first and the place last."""
    names = dict.fromkeys(name for record in records for mention in judged(record["score"]) for name in mention.values)
    return [SCORE, *(name for name in names if name not in (SCORE, POSITION)), POSITION]


def fitted_weights(mentions: Sequence[Any], parts: Sequence[str]) -> dict[str, dict[str, float]] | None:
    """Weights for a profile, by the name of the set of parts; None where truth and error do not both occur."""
    kept = [mention for mention in mentions if all(part in mention.values for part in parts)]
    try:
        values = [{part: mention.values[part] for part in parts} for mention in kept]
        fitted = fit_weights(values, [mention.good for mention in kept])
    except ValueError:
        return None
    return {name_of(parts): fitted}


def _how_often(records: Sequence[Record], name: str) -> dict[str, int]:
    """How often repair took something out in a way, or left a fault."""
    repaired = [record["score"]["repaired"] for record in records if record["score"].get("repaired") is not None]
    return dict(Counter(item for part in repaired for item in part[name]))


class _WithZeros(dict):
    """Counts, 0 where a name does not occur."""

    def __missing__(self, name: str) -> np.ndarray:
        return np.zeros(())
