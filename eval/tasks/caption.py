"""Captions of pictures without labels: how long they are, how often they loop, how many the token limit cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.chair.scoring import repeated_share
from vlm_guard.eval.tasks.chair.text import lower_with_offsets, split_words
from vlm_guard.eval.tasks.shared.metric import Column, Metric, share
from vlm_guard.eval.tasks.shared.received import Amount, Count, Received, Whole
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting

_METRICS = (
    Metric(name="caption.words", label="words", kind="length", better=None, compute=share("words", "captions")),
    Metric(
        name="caption.repetition",
        label="repetition",
        kind="share",
        better="lower",
        compute=share("repetition", "captions"),
    ),
    Metric(name="caption.cut_off", label="cut off", kind="share", better="lower", compute=share("cut_off", "captions")),
)


class CaptionSettings(TaskSettings):
    """How captions are asked for."""

    max_new_tokens: int = setting(512, "Token limit of captions.", ge=1)
    prompt: str = setting("Please describe this image in detail.", "Instruction for captions.")


class CaptionScoreReceived(Received):
    """The score of a caption."""

    words: Count
    repeated_4_grams: Amount
    image_id: Whole | None = None


class CaptionDescribed(Received):
    """What decides the captions."""

    prompt: str
    max_new_tokens: Count


@register_task("caption")
class CaptionTask(Task):
    """One caption per picture; nothing has to be known about the pictures."""

    help = "Captions of pictures without labels: their length, repetition, and how many were cut off."
    source = "this project; no benchmark"
    table_title = "captions"
    data_kinds = ("folder", "scenes", "coco")
    data_help = "folder:FOLDER or folder:LIST.jsonl (pictures of your own), scenes:SPLIT[:SEED] or coco:FOLDER"
    Settings = CaptionSettings
    Score = CaptionScoreReceived
    Described = CaptionDescribed
    columns = (
        Column(metric="caption.words", label="words", kind="length"),
        Column(metric="caption.repetition", label="repeat ↓"),
        Column(metric="caption.cut_off", label="cut off ↓"),
    )

    def samples(self) -> list[Sample]:
        """One per picture."""
        return [
            Sample(key=f"caption/{image_id}", task=self.name, image_id=image_id, prompt=self.settings.prompt)
            for image_id in self.data.images
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """Words, the share of 4-grams that have occurred before, and the picture's id where the data gives one."""
        numbered = self.data.kind != "folder" or (self.data.content or {}).get("ids_are_given", False)
        lowered, _ = lower_with_offsets(text)
        return {
            "words": len(text.split()),
            "repeated_4_grams": repeated_share(split_words(lowered)),
            **({"image_id": sample.image_id} if numbered else {}),
        }

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """The counts of one caption."""
        score = record["score"]
        return {
            "captions": 1,
            "words": score["words"],
            "repetition": score["repeated_4_grams"],
            "cut_off": not record["finished"],
        }

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The same for all records."""
        return _METRICS

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """The sums that the rates come from."""
        return {
            "captions": len(records),
            "words": sum(record["score"]["words"] for record in records),
            "cut_off": sum(not record["finished"] for record in records),
        }

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """Prompt and token limit."""
        return f'captions, prompt "{described["prompt"]}", at most {described["max_new_tokens"]} tokens'

    @classmethod
    def answer_line(cls, record: Record) -> dict[str, Any]:
        """A caption as `vlm-guard chair` reads it."""
        score = record["score"]
        return {
            **({"image_id": score["image_id"]} if score.get("image_id") is not None else {}),
            "image": record["image"],
            "caption": record["text"],
            "tokens": record["tokens"],
            "finished": record["finished"],
        }

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The caption, without mentions."""
        return {
            "objects": [],
            "caption": {
                "text": record["text"],
                "mentions": [],
                "words": record["score"]["words"],
                "finished": record["finished"],
            },
        }
