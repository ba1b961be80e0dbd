"""Multiple-choice questions from a file of one's own: any benchmark that consists of them, as data instead of code.

`--data mc:FILE` gives the questions (`vlm_guard.eval.tasks.shared.multiple_choice` says how), optionally with a `group`
each. The options stand below the question with their letters; an answer chooses by letter or by an option's text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.shared.metric import Better, Column, Metric, share
from vlm_guard.eval.tasks.shared.multiple_choice import choice_prompt, chosen_option, read_choices
from vlm_guard.eval.tasks.shared.own_data import question_data
from vlm_guard.eval.tasks.shared.received import Count, Name, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting
from vlm_guard.untrusted.json_files import text_field

_NONE = "none"


class ChoiceSettings(TaskSettings):
    """How the questions are asked."""

    max_new_tokens: int = setting(16, "Token limit of an answer.", ge=1)
    suffix: str = setting("", "Text after the options, such as an instruction to answer with a letter.")


class ChoiceScoreReceived(Received):
    """The score of an answered question."""

    answer: str
    label: str
    options: Count
    group: Name


@register_task("mc")
class MultipleChoiceTask(Task):
    """The multiple-choice questions of a file."""

    help = "Multiple-choice questions from a file of your own, in all and by group."
    source = "your own questions"
    table_title = "multiple choice"
    own_data = "mc"
    data_kinds = ("mc",)
    data_help = "mc:FILE, a JSONL of question, options, answer and image"
    Settings = ChoiceSettings
    Score = ChoiceScoreReceived
    columns = (
        Column(metric="mc.accuracy", label="acc ↑"),
        Column(metric="mc.chance", label="chance"),
        Column(metric="mc.first_option", label="first option"),
        Column(metric="mc.unread", label="unread ↓"),
    )

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """The questions of the file; with a count, the first ones."""
        path = Path(place)
        records = {record.number: record for record in read_choices(path)}
        images = {number: record.image for number, record in records.items()}
        name = f"mc:{path.name}"
        return question_data("mc", path.parent, images, records, count=count, files=(path,), name=name)

    def samples(self) -> list[Sample]:
        """One per question."""
        return [
            Sample(
                key=f"mc/{number}",
                task=self.name,
                image_id=number,
                prompt=choice_prompt(record.question, record.options) + self.settings.suffix,
            )
            for number, record in ((number, self.data.content[number]) for number in self.data.images)
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The option chosen, the right one, how many there are, and the group of the question."""
        record = self.data.content[sample.image_id]
        where = f"{self.data.name}: record {record.number}"
        return {
            "answer": chosen_option(text, record.options) or _NONE,
            "label": record.answer,
            "options": len(record.options),
            "group": text_field(dict(record.rest), "group", where, optional=True),
        }

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One question, among all and in its group."""
        score = record["score"]
        right = score["answer"] == score["label"]
        counts = {
            "asked": 1,
            "right": right,
            "unread": score["answer"] == _NONE,
            "first": score["answer"] == "A",
            "chance": 1 / max(score["options"], 1),
        }
        if score["group"]:
            counts |= {f"{score['group']}.asked": 1, f"{score['group']}.right": right}
        return counts

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Accuracy beside what guessing gives, how often the first option is chosen, accuracy by group."""
        groups = dict.fromkeys(record["score"]["group"] for record in records if record["score"]["group"])
        return (
            _metric("accuracy", "higher", "right"),
            _metric("chance", None, "chance"),
            _metric("first_option", None, "first"),
            _metric("unread", "lower", "unread"),
            *(
                Metric(
                    name=f"mc.{group}.accuracy",
                    label=group,
                    kind="share",
                    better="higher",
                    compute=share(f"{group}.right", f"{group}.asked"),
                )
                for group in groups
            ),
        )

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """Questions, right and unread answers."""
        total = {name: sum(cls.counts(record)[name] for record in records) for name in ("asked", "right", "unread")}
        return {"metric": "multiple choice", **{name: int(value) for name, value in total.items()}}

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """What chance is."""
        return "multiple choice, beside the accuracy of guessing"

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with its group."""
        group = record["score"]["group"]
        return {**super().page_entry(record), "groups": [group] if group else []}


def _metric(name: str, better: Better, part: str) -> Metric:
    label = name.replace("_", " ")
    return Metric(name=f"mc.{name}", label=label, kind="share", better=better, compute=share(part, "asked"))
