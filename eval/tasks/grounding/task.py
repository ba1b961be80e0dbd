"""Grounding: do the scores of what a caption mentions tell what is in the picture from what is not?

Mentions are MSCOCO's objects as CHAIR reads them, and CHAIR's truth is theirs. A detector proves nothing unless it
beats the place in the caption: late mentions are wrong far more often. So every score stands beside `position`, and
inside fifths of the caption, where early mentions are not compared with late ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import field_validator

from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.chair.scoring import read_caption
from vlm_guard.eval.tasks.chair.settings import CAPTION_PROMPT
from vlm_guard.eval.tasks.grounding.counts import POSITION, SCORE, grounding_metrics, histograms, judged, mention_counts
from vlm_guard.eval.tasks.grounding.curves import risk_coverage
from vlm_guard.eval.tasks.grounding.plots import plot_risk_coverage
from vlm_guard.eval.tasks.grounding.received import GroundingDescribed, GroundingScoreReceived
from vlm_guard.eval.tasks.grounding.repairing import repair_counts, repair_metrics, repair_record
from vlm_guard.eval.tasks.shared.metric import Column, Metric
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting
from vlm_guard.grounding.answers import PARTS, REPAIRS, Grounding, ground
from vlm_guard.grounding.mention import FoundMention
from vlm_guard.grounding.score import fit_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vlm_guard.eval.tasks.shared.drawing import Drawn
    from vlm_guard.guard import Guard

# Points of the risk-coverage curve that results hold.
_COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def coco_mentions(text: str) -> list[FoundMention]:
    """MSCOCO's objects that a text mentions, by CHAIR's reader: a finder of mentions."""
    return [FoundMention(mention.node, mention.start, mention.end) for mention in read_caption(text).mentions]


class GroundingSettings(TaskSettings):
    """How captions are asked for and what is measured of their mentions."""

    prompt: str = setting(CAPTION_PROMPT, "Instruction for captions.")
    max_new_tokens: int = setting(512, "Token limit of captions.", ge=1)
    parts: list[str] = setting(["lens", "self_check"], f"What scores are made of: {', '.join(PARTS)}.")

    repair: str = setting("drop", f"How doubtful mentions are taken out: {', '.join(REPAIRS)}, or none.")

    @field_validator("repair")
    @classmethod
    def _known_repair(cls, value: str) -> str:
        if value not in (*REPAIRS, "none"):
            raise ValueError(f"repair is {value!r}; allowed: {', '.join(REPAIRS)}, none")
        return value

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
    )

    def samples(self) -> list[Sample]:
        """One per picture."""
        return [
            Sample(key=f"grounding/{image_id}", task=self.name, image_id=image_id, prompt=self.settings.prompt)
            for image_id in self.data.images
        ]

    def measure(self, guard: Guard, inputs: Mapping[str, Any], sequences: Tensor) -> list[dict[str, Any]]:
        """The scored mentions of every answer."""
        repair = None if self.settings.repair == "none" else self.settings.repair
        settings = Grounding(parts=tuple(self.settings.parts), find=coco_mentions, repair=repair)
        return [
            {
                "mentions": [mention.to_dict() for mention in answer.mentions],
                "length": len(answer.text),
                "repaired": None if answer.repaired is None else repair_record(answer.text, answer.repaired),
            }
            for answer in ground(guard, inputs, sequences, settings)
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The objects of the picture; what `measure` gave stands beside them."""
        return {"objects": sorted(self.data.objects[sample.image_id])}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """The histograms of the scored mentions, and what repair did."""
        words = len(record["text"].split())
        return mention_counts(judged(record["score"])) | repair_counts(record["score"], words)

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The numbers of the score, of every part, and of the place; then those of the repair."""
        repaired = any(record["score"].get("repaired") is not None for record in records)
        return grounding_metrics(measured_values(records)) + (repair_metrics() if repaired else ())

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """How many mentions there are, how often they are wrong by fifth, the curve, and weights fitted to them."""
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
            "removed": _how_often(records, "removed"),
            "faults": _how_often(records, "faults"),
            "fitted_weights": fitted_weights(mentions, described["parts"]),
        }

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """What was measured."""
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
        """The caption with its mentions, and the objects of the picture."""
        score = record["score"]
        objects = set(score["objects"])
        return {
            "objects": score["objects"],
            "caption": {
                "text": record["text"],
                "mentions": [
                    [mention["start"], mention["end"], mention["noun"], int(mention["noun"] not in objects)]
                    for mention in score["mentions"]
                ],
                "words": len(record["text"].split()),
                "finished": record["finished"],
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
    return {"+".join(sorted(parts)): fitted}


def _how_often(records: Sequence[Record], name: str) -> dict[str, int]:
    """How often repair took something out in a way, or left a fault."""
    repaired = [record["score"]["repaired"] for record in records if record["score"].get("repaired") is not None]
    return dict(Counter(item for part in repaired for item in part[name]))


class _WithZeros(dict):
    """Counts, 0 where a name does not occur."""

    def __missing__(self, name: str) -> np.ndarray:
        return np.zeros(())
