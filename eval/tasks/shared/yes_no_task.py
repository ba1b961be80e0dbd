"""The base class of tasks that are lists of yes/no questions: what they ask, record and count is the same."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.pope.parsers import parse_answer
from vlm_guard.eval.tasks.shared.fair import FairPair, yes_matched
from vlm_guard.eval.tasks.shared.received import Name, Received
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting
from vlm_guard.eval.tasks.shared.yes_no import YesNoQuestion, count_answer, summary_of


class YesNoSettings(TaskSettings):
    """How the questions are asked and read."""

    max_new_tokens: int = setting(10, "Token limit of an answer.", ge=1)
    suffix: str = setting("", "Text after each question, such as ' Please answer yes or no.'.")
    parser: Literal["strict", "pope", "opera", "vcd"] = setting("strict", "How answers are read, as for POPE.")


class YesNoScoreReceived(Received):
    """The score of an answered question."""

    answer: Literal["yes", "no", "unparsed"]
    label: Literal["yes", "no"]
    group: Name


class YesNoDescribed(Received):
    """How the questions were asked and read."""

    suffix: str
    parser: str


class YesNoQuestionTask(Task):
    """Yes/no questions; `data.content` has those about each picture, a list of `YesNoQuestion` by its number."""

    Settings: ClassVar[type[TaskSettings]] = YesNoSettings
    Score = YesNoScoreReceived
    Described = YesNoDescribed
    watches_yes_no = True

    @cached_property
    def _by_key(self) -> dict[str, tuple[int, YesNoQuestion]]:
        return {
            f"{self.name}/{question.key}": (number, question)
            for number in self.data.images
            for question in self.data.content[number]
        }

    def samples(self) -> list[Sample]:
        """One per question, those of one picture side by side."""
        return [
            Sample(key=key, task=self.name, image_id=number, prompt=f"{question.text}{self.settings.suffix}")
            for key, (number, question) in self._by_key.items()
        ]

    def read(self, text: str, question: YesNoQuestion) -> str:
        """What an answer says: yes, no or unparsed."""
        return parse_answer(text, self.settings.parser, question.label)

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The answer as read, the right one, and the group of the question."""
        question = self._by_key[sample.key][1]
        return {"answer": self.read(text, question), "label": question.label, "group": question.group}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One question, among all and in its group."""
        score = record["score"]
        return count_answer(score["label"], score["answer"], ["all", *named(score["group"])])

    @classmethod
    def fair_pair(cls, baseline: Sequence[Record], other: Sequence[Record]) -> FairPair | None:
        """The baseline with a constant leaning to yes that makes it say yes as often as the method."""
        names = {f"{cls.name}.all.{rate}": f"{cls.name}.over_control.{rate}" for rate in ("accuracy", "f1")}
        return yes_matched(baseline, other, names)

    @classmethod
    def groups(cls, records: Sequence[Record]) -> list[str]:
        """The groups of these records' questions, in the order they come."""
        return list(dict.fromkeys(name for record in records for name in named(record["score"]["group"])))

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """Questions and rates, of all and of every group."""
        total: dict[str, float] = {}
        for record in records:
            for name, value in cls.counts(record).items():
                total[name] = total.get(name, 0) + value
        rates = {name: summary_of(total, name) for name in ("all", *cls.groups(records))}
        return {"metric": cls.table_title, "parser": described["parser"], **rates}

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """What is asked and how answers are read."""
        return f"{cls.table_title} questions, read by the {described['parser']} parser"

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with its group."""
        return {**super().page_entry(record), "groups": named(record["score"]["group"])}


def named(group: str) -> list[str]:
    """The groups of a question besides all: one or none. One that is called "all" is not told apart from all."""
    return [group] if group not in ("", "all") else []
