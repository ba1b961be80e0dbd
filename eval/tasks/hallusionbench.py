"""HallusionBench's yes/no questions about figures, edited figures and no figure (Guan et al., arXiv 2310.14566).

`--data hallusionbench:FOLDER` is its release: `HallusionBench.json` with the pictures where the file says
(`./VD/ocr/10_0.png`, ...), below FOLDER or FOLDER/hallusion_bench. It is not part of this project. The release has
1,129 questions in 167 sets, 455 question groups and 346 figures; 178 of the questions come without a picture.

A language model judges answers in the release; here a parser reads yes or no, and what it cannot read counts as the
judge's "unclear". Questions without a picture are shown a plain grey one, since the models asked here need a picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlm_guard.eval.data.datasets import EvaluationData
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.pope.parsers import parse_answer
from vlm_guard.eval.tasks.shared.fair import FairPair, yes_matched
from vlm_guard.eval.tasks.shared.metric import Better, Column, Counts, Metric, ratio, share
from vlm_guard.eval.tasks.shared.own_data import folder_of, question_data
from vlm_guard.eval.tasks.shared.received import Name, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.yes_no import Label, read_label
from vlm_guard.eval.tasks.shared.yes_no_task import YesNoDescribed, YesNoSettings
from vlm_guard.untrusted.json_files import read_records, text_field, whole_number
from vlm_guard.untrusted.paths import relative_name
from vlm_guard.untrusted.printed_text import shown

FILE = "HallusionBench.json"
_CATEGORIES = ("VD", "VS")
_NO_PICTURE, _EDITED = 0, 2
_GREY, _GREY_SIZE = (127, 127, 127), (336, 336)


@dataclass(frozen=True, kw_only=True)
class HallusionQuestion:
    """One question of HallusionBench.

    Attributes:
        category: VD (cannot be answered without the picture) or VS (can).
        subcategory: kind of figure.
        set_id: the set it belongs to, within its subcategory.
        figure_id: the figure of the set; 0 is the original (VD) or none (VS).
        question_id: the question of the set; the same one is asked about every figure.
        visual_input: 0 without a picture, 1 with an original one, 2 with an edited one.
        text: the question.
        label: yes or no.
        image: the picture as the file names it; None without one.
    """

    category: str
    subcategory: str
    set_id: int
    figure_id: int
    question_id: int
    visual_input: int
    text: str
    label: Label
    image: str | None

    @property
    def set_name(self) -> str:
        """The set, unique in the file."""
        return f"{self.category}/{self.subcategory}/{self.set_id}"

    @property
    def key(self) -> str:
        """The question, unique in the file."""
        return f"{self.set_name}/{self.figure_id}/{self.question_id}"


def read_hallusionbench(path: str | Path) -> list[HallusionQuestion]:
    """The questions of HallusionBench's file, in its order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record lacks a field or holds something else than the release's, or a question stands twice.
    """
    questions: dict[str, HallusionQuestion] = {}
    for number, record in read_records(path):
        question = _read(record, f"{path}: record {number}")
        if question.key in questions:
            raise ValueError(f"{path}: record {number} is question {question.key}, which stands in the file before")
        questions[question.key] = question
    if not questions:
        raise ValueError(f"{path} has no questions")
    return list(questions.values())


def _read(record: dict[str, Any], where: str) -> HallusionQuestion:
    names = ("set_id", "figure_id", "question_id", "visual_input")
    numbers = {name: whole_number(record.get(name), name, where) for name in names}
    category = text_field(record, "category", where)
    if category not in _CATEGORIES or numbers["visual_input"] not in (0, 1, 2):
        raise ValueError(
            f"{where}: category and visual_input are {shown(category)} and {numbers['visual_input']}; they must be VD "
            "or VS, and 0, 1 or 2"
        )
    image = text_field(record, "filename", where, optional=True)
    if bool(image) != (numbers["visual_input"] != _NO_PICTURE):
        raise ValueError(f"{where}: visual_input is {numbers['visual_input']}, and the filename is {shown(image)}")
    return HallusionQuestion(
        category=category,
        subcategory=text_field(record, "subcategory", where),
        text=text_field(record, "question", where),
        label=read_label(record.get("gt_answer"), where),
        image=relative_name(image.removeprefix("./"), where) if image else None,
        **numbers,
    )


class HallusionScoreReceived(Received):
    """The score of an answered question."""

    answer: Literal["yes", "no", "unparsed"]
    label: Literal["yes", "no"]
    category: Name
    subcategory: Name
    figure: int
    question: int
    visual_input: int


@register_task("hallusionbench")
class HallusionBenchTask(Task):
    """HallusionBench's questions; intervals are over its sets, since a set's questions and figures belong together."""

    help = "Yes/no questions about figures, edited figures and none: per question, figure and question group."
    source = "HallusionBench, CVPR 2024, arXiv 2310.14566"
    table_title = "HallusionBench"
    own_data = "hallusionbench"
    data_kinds = ("hallusionbench",)
    data_help = "hallusionbench:FOLDER, the release: HallusionBench.json with its pictures"
    Settings = YesNoSettings
    Score = HallusionScoreReceived
    Described = YesNoDescribed
    columns = (
        Column(metric="hallusionbench.a_acc", label="aAcc ↑"),
        Column(metric="hallusionbench.f_acc", label="fAcc ↑"),
        Column(metric="hallusionbench.q_acc", label="qAcc ↑"),
        Column(metric="hallusionbench.easy", label="easy ↑"),
        Column(metric="hallusionbench.hard", label="hard ↑"),
        Column(metric="hallusionbench.yes_difference", label="yes bias"),
        Column(metric="hallusionbench.unparsed", label="unparsed ↓"),
        Column(metric="hallusionbench.over_control", label="aAcc − control ↑", kind="difference", better="higher"),
    )
    watches_yes_no = True

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: Any) -> EvaluationData:
        """The release; what is counted as pictures are its sets."""
        folder = folder_of("hallusionbench", place, "HallusionBench's release: HallusionBench.json and its pictures")
        questions = read_hallusionbench(folder / FILE)
        by_set: dict[str, list[HallusionQuestion]] = {}
        for question in questions:
            by_set.setdefault(question.set_name, []).append(question)
        content = dict(enumerate(by_set.values(), start=1))
        images = {}
        for number, asked in content.items():
            pictured = next((question.image for question in asked if question.image), None)
            if pictured is None:
                raise ValueError(f"{folder / FILE}: no question of the set {asked[0].set_name} has a picture")
            images[number] = _file(folder, pictured)
        return question_data("hallusionbench", folder, images, content, count=count, files=(folder / FILE,))

    @cached_property
    def _by_key(self) -> dict[str, tuple[int, HallusionQuestion]]:
        return {
            f"hallusionbench/{question.key}": (number, question)
            for number in self.data.images
            for question in self.data.content[number]
        }

    def samples(self) -> list[Sample]:
        """One per question, those of one set side by side; the variant is the figure."""
        return [
            Sample(
                key=key,
                task=self.name,
                image_id=number,
                prompt=f"{question.text}{self.settings.suffix}",
                variant=question.image or "none",
            )
            for key, (number, question) in self._by_key.items()
        ]

    def picture(self, sample: Sample, read: Callable[[Path], Image.Image]) -> Image.Image:
        """The figure, or a grey picture for a question without one."""
        question = self._by_key[sample.key][1]
        if question.image is None:
            return Image.new("RGB", _GREY_SIZE, _GREY)
        return read(_file(self.data.folder, question.image))

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The answer as read, and which question of which figure it answers."""
        question = self._by_key[sample.key][1]
        return {
            "answer": parse_answer(text, self.settings.parser, question.label),
            "label": question.label,
            "category": question.category,
            "subcategory": question.subcategory,
            "figure": question.figure_id,
            "question": question.question_id,
            "visual_input": question.visual_input,
        }

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One question, among all, in its category, and as the release's two measures of a leaning to yes count it."""
        score = record["score"]
        right, yes = _right(score), score["label"] == "yes"
        kinds = ("questions", score["category"], "edited" if score["visual_input"] == _EDITED else "unedited")
        return {
            **dict.fromkeys(kinds, 1),
            **{f"{name}.right": int(right) for name in kinds},
            # As the release counts: what is right says its label, what is wrong says the other, also if it is unclear.
            "said_yes": right == yes,
            "label_yes": yes,
            "wrong": not right,
            "wrong_yes": not right and not yes,
            "unparsed": score["answer"] == "unparsed",
        }

    @classmethod
    def fair_pair(cls, baseline: Sequence[Record], other: Sequence[Record]) -> FairPair | None:
        """The baseline with a constant leaning to yes that makes it say yes as often as the method."""
        return yes_matched(baseline, other, {"hallusionbench.a_acc": "hallusionbench.over_control"})

    @classmethod
    def image_counts(cls, records: Sequence[Record]) -> dict[str, float]:
        """The questions of a set, its figures with all questions right, its question groups with all figures right."""
        counts = super().image_counts(records)
        wholes: dict[tuple[str, Any], bool] = {}
        for record in records:
            score = record["score"]
            level = "hard" if score["visual_input"] == _EDITED else "easy"
            for whole in (("groups", score["question"]), (level, score["question"]), ("figures", score["figure"])):
                # Without a picture there is no figure, which the release leaves out for VS.
                if whole != ("figures", 0) or score["category"] == "VD":
                    wholes[whole] = wholes.get(whole, True) and _right(score)
        for (name, _), right in wholes.items():
            counts[name] = counts.get(name, 0) + 1
            counts[f"{name}.right"] = counts.get(f"{name}.right", 0) + right
        return counts

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """The release's accuracies and its two measures of a leaning to yes."""
        wholes = {"a_acc": "questions", "f_acc": "figures", "q_acc": "groups", "easy": "easy", "hard": "hard"}
        wholes |= {"unedited": "unedited", "edited": "edited", "vd": "VD", "vs": "VS"}
        return (
            *(_metric(name, "higher", share(f"{whole}.right", whole)) for name, whole in wholes.items()),
            _metric("yes_difference", None, _yes_difference),
            _metric("false_positive_share", None, share("wrong_yes", "wrong")),
            _metric("unparsed", "lower", share("unparsed", "questions")),
        )

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """How many questions, figures and groups there are, and how many of each are right."""
        by_set: dict[int, list[Record]] = {}
        for record in records:
            by_set.setdefault(record["image_id"], []).append(record)
        total: dict[str, float] = {}
        for asked in by_set.values():
            for name, value in cls.image_counts(asked).items():
                total[name] = total.get(name, 0) + value
        counts = {name.replace(".", "_"): int(value) for name, value in total.items()}
        return {"metric": "HallusionBench", "parser": described["parser"], "sets": len(by_set), **counts}

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """How answers are read, and what is shown where there is no picture."""
        return (
            f"HallusionBench, read by the {described['parser']} parser instead of a judge, unreadable answers as "
            "unclear; questions without a picture see a grey one"
        )

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with its category and kind of figure."""
        score = record["score"]
        kind = ("no picture", "original", "edited")[min(score["visual_input"], _EDITED)]
        return {**super().page_entry(record), "groups": [score["category"], score["subcategory"], kind]}


def _file(folder: Path, name: str) -> Path:
    """A picture of the release; its place below FOLDER where it is in neither place."""
    places = [folder / name, folder / "hallusion_bench" / name.removeprefix("hallusion_bench/")]
    return next((path for path in places if path.is_file()), places[0])


def _right(score: Mapping[str, Any]) -> bool:
    """Whether an answer is right; unclear is right where VS is asked without a picture."""
    unclear = score["answer"] == "unparsed" and score["category"] == "VS" and score["figure"] == 0
    return unclear or score["answer"] == score["label"]


def _yes_difference(counts: Counts) -> Any:
    return ratio(counts["said_yes"], counts["questions"]) - ratio(counts["label_yes"], counts["questions"])


def _metric(name: str, better: Better, compute: Callable[[Counts], Any]) -> Metric:
    label = name.replace("_", " ")
    return Metric(name=f"hallusionbench.{name}", label=label, kind="share", better=better, compute=compute)
