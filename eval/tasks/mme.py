"""MME's hallucination subset: existence, count, position, colour (Fu et al., arXiv 2306.13394).

Two questions per image, one to be answered yes and one no. A subtask's score is its accuracy plus its accuracy+ (both
questions of an image right), in percent, so 200 at most; the subset's total is 800 at most. The data is not part of
this project: see the reader for the layout it expects.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from vlm_guard.eval.data.datasets import EvaluationData, hash_file, hash_lines
from vlm_guard.eval.tasks.base import Record, Sample, Task
from vlm_guard.eval.tasks.shared.fair import FairPair, yes_matched
from vlm_guard.eval.tasks.shared.metric import Better, Column, Counts, Metric, share
from vlm_guard.eval.tasks.shared.own_data import folder_of, question_data
from vlm_guard.eval.tasks.shared.received import Name, Received
from vlm_guard.eval.tasks.shared.registry import register_task
from vlm_guard.eval.tasks.shared.settings import TaskSettings, setting

HALLUCINATION_SUBTASKS = ("existence", "count", "position", "color")

_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class MmeQuestion:
    """One question of MME.

    Attributes:
        subtask: name of the subtask.
        image: picture file.
        text: the question, with its own suffix "Please answer yes or no.".
        label: yes or no.
        file: the text file it stands in, where it was read from one.
    """

    subtask: str
    image: Path
    text: str
    label: str
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.label not in ("yes", "no"):
            raise ValueError(f"the label of a question about {self.image} is {self.label!r}; it must be yes or no")


def _picture(folder: Path, name: str) -> Path:
    for place in (folder, folder / "images"):
        for suffix in _IMAGE_SUFFIXES:
            if (place / f"{name}{suffix}").is_file():
                return place / f"{name}{suffix}"
    raise FileNotFoundError(f"{folder} has questions about {name}, but no picture {name}.jpg or .png")


def read_mme(folder: str | Path, subtasks: Sequence[str] = HALLUCINATION_SUBTASKS) -> list[MmeQuestion]:
    """The questions of MME's release folder.

    Every subtask is a folder with one text file per picture, in itself (`existence/000000006040.txt`, beside the
    picture) or in `questions_answers_YN` (pictures then in `images`); a line is the question, a tab, Yes or No.

    Raises:
        FileNotFoundError: a subtask's folder, its questions or a picture is missing.
        ValueError: a line is not a question with its answer.
    """
    questions = []
    for subtask in subtasks:
        place = Path(folder) / subtask
        texts = sorted(place.glob("*.txt")) or sorted((place / "questions_answers_YN").glob("*.txt"))
        if not texts:
            raise FileNotFoundError(f"there are no question files for the subtask {subtask!r} in {place}")
        for path in texts:
            image = _picture(place, path.stem)
            for line in path.read_text(encoding="utf-8").splitlines():
                if not line.strip():
                    continue
                text, tab, label = line.rpartition("\t")
                if not tab:
                    raise ValueError(f"{path}: {line!r} is no question and answer with a tab between them")
                questions.append(
                    MmeQuestion(subtask=subtask, image=image, text=text.strip(), label=label.strip().lower(), file=path)
                )
    return questions


def parse_mme(text: str) -> Literal["yes", "no", "other"]:
    """Read an answer as MME's own script does: exactly yes or no, else one of them in the first four characters."""
    answer = text.strip().lower()
    # The whole answers "yes" and "no" begin with themselves, so the script's first case is in its second.
    if "yes" in answer[:4]:
        return "yes"
    return "no" if "no" in answer[:4] else "other"


@dataclass(frozen=True, kw_only=True)
class SubtaskScore:
    """Counts of one subtask.

    Attributes:
        questions: number of questions.
        correct: questions answered rightly.
        images: number of images.
        both_correct: images with all their questions answered rightly.
        other: answers that are neither yes nor no, which are wrong.
    """

    questions: int
    correct: int
    images: int
    both_correct: int
    other: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, in percent."""
        return 100 * self.correct / self.questions if self.questions else 0.0

    @property
    def accuracy_plus(self) -> float:
        """Share of images with all questions right, in percent."""
        return 100 * self.both_correct / self.images if self.images else 0.0

    @property
    def score(self) -> float:
        """Accuracy plus accuracy+, 200 at most."""
        return self.accuracy + self.accuracy_plus


def score_mme(questions: Sequence[MmeQuestion], answers: Sequence[str]) -> dict[str, Any]:
    """Score answers, one per question and in the questions' order.

    Returns:
        `subtasks` (counts, accuracy, accuracy_plus and score by name) and `total`, the sum of the scores; as JSON
        can hold them.

    Raises:
        ValueError: there are more questions than answers or fewer.
    """
    return _scores(
        (question.subtask, question.image, question.label, parse_mme(text))
        for question, text in zip(questions, answers, strict=True)
    )


def _scores(answered: Iterable[tuple[str, Any, str, str]]) -> dict[str, Any]:
    """MME's scores of answers, each given by subtask, picture, label and the answer as read."""
    by_subtask: dict[str, dict[Any, list[str]]] = {}
    for subtask, image, label, answer in answered:
        verdict = "right" if answer == label else "other" if answer == "other" else "wrong"
        by_subtask.setdefault(subtask, {}).setdefault(image, []).append(verdict)
    scores = {}
    for name, images in by_subtask.items():
        verdicts = [verdict for image in images.values() for verdict in image]
        scores[name] = SubtaskScore(
            questions=len(verdicts),
            correct=verdicts.count("right"),
            images=len(images),
            both_correct=sum(set(image) == {"right"} for image in images.values()),
            other=verdicts.count("other"),
        )
    return {
        "metric": "MME",
        "subtasks": {
            name: {
                **asdict(score),
                "accuracy": score.accuracy,
                "accuracy_plus": score.accuracy_plus,
                "score": score.score,
            }
            for name, score in scores.items()
        },
        "total": sum(score.score for score in scores.values()),
    }


class MmeSettings(TaskSettings):
    """Which of MME's subtasks are asked. The questions of the release end with their own instruction."""

    max_new_tokens: int = setting(16, "Token limit of an answer.", ge=1)
    subtasks: list[str] = setting(list(HALLUCINATION_SUBTASKS), "Subtasks, by the names of their folders.")


class MmeScoreReceived(Received):
    """The score of an answered question."""

    answer: Literal["yes", "no", "other"]
    label: Literal["yes", "no"]
    subtask: Name


class MmeDescribed(Received):
    """Which subtasks were asked."""

    subtasks: list[str]


@register_task("mme")
class MmeTask(Task):
    """MME's yes/no questions about the pictures of its release."""

    help = "MME's hallucination subset: existence, count, position and colour, 200 points each."
    source = "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models, arXiv 2306.13394"
    table_title = "MME"
    own_data = "mme"
    data_kinds = ("mme",)
    data_help = "mme:FOLDER, MME's release: a folder with pictures and question files for each subtask"
    Settings = MmeSettings
    Score = MmeScoreReceived
    Described = MmeDescribed
    columns = (
        Column(metric="mme.total", label="MME total ↑"),
        *(Column(metric=f"mme.{name}.score", label=f"{name} ↑") for name in HALLUCINATION_SUBTASKS),
        Column(metric="mme.other", label="unparsed ↓"),
        Column(metric="mme.over_control", label="total − control ↑", kind="difference", better="higher"),
    )
    watches_yes_no = True

    @classmethod
    def open_data(cls, place: str, count: int | None, settings: TaskSettings) -> EvaluationData:
        """MME's release; with a count, pictures of the subtasks in turn."""
        folder = folder_of("mme", place, "MME's release, a folder for each subtask")
        chosen: Any = settings
        questions = read_mme(folder, chosen.subtasks)
        by_subtask: dict[str, dict[Path, list[MmeQuestion]]] = {}
        for question in questions:
            by_subtask.setdefault(question.subtask, {}).setdefault(question.image, []).append(question)
        groups = [list(images.values()) for images in by_subtask.values()]
        in_turn = [asked for turn in zip_longest(*groups) for asked in turn if asked is not None]
        content = dict(enumerate(in_turn, start=1))
        images = {number: asked[0].image for number, asked in content.items()}
        texts = sorted({asked[0].file for asked in in_turn if asked[0].file is not None})
        data = question_data("mme", folder, images, content, count=count)
        return replace(data, annotation_hashes={"questions": hash_lines(hash_file(path) for path in texts)})

    @cached_property
    def _by_key(self) -> dict[str, MmeQuestion]:
        return {
            f"mme/{question.subtask}/{number}/{place}": question
            for number in self.data.images
            for place, question in enumerate(self.data.content[number], start=1)
        }

    def samples(self) -> list[Sample]:
        """One per question, those of one picture side by side."""
        return [
            Sample(key=key, task=self.name, image_id=int(key.split("/")[2]), prompt=question.text)
            for key, question in self._by_key.items()
        ]

    def score(self, sample: Sample, text: str) -> dict[str, Any]:
        """The answer as MME's script reads it."""
        question = self._by_key[sample.key]
        return {"answer": parse_mme(text), "label": question.label, "subtask": question.subtask}

    @classmethod
    def counts(cls, record: Record) -> Mapping[str, float]:
        """One question of a subtask."""
        score = record["score"]
        right, other = score["answer"] == score["label"], score["answer"] == "other"
        return {
            f"{score['subtask']}.questions": 1,
            f"{score['subtask']}.correct": right,
            "questions": 1,
            "other": other,
        }

    @classmethod
    def fair_pair(cls, baseline: Sequence[Record], other: Sequence[Record]) -> FairPair | None:
        """The baseline with a constant leaning to yes that makes it say yes as often as the method."""
        return yes_matched(baseline, other, {"mme.total": "mme.over_control"})

    @classmethod
    def image_counts(cls, records: Sequence[Record]) -> dict[str, float]:
        """The questions of a picture, and whether all of them are answered rightly."""
        counts = super().image_counts(records)
        for name in dict.fromkeys(record["score"]["subtask"] for record in records):
            counts[f"{name}.images"] = 1
            counts[f"{name}.both_correct"] = counts[f"{name}.correct"] == counts[f"{name}.questions"]
        return counts

    @classmethod
    def metrics(cls, records: Sequence[Record]) -> tuple[Metric, ...]:
        """Accuracy, accuracy+ and their sum for every subtask, as fractions; the total."""
        names = list(dict.fromkeys(record["score"]["subtask"] for record in records))
        return (
            _metric("total", "higher", lambda counts: sum(_points(name, counts) for name in names)),
            *(metric for name in names for metric in _subtask_metrics(name)),
            _metric("other", "lower", share("other", "questions")),
        )

    @classmethod
    def summarise(cls, records: Sequence[Record], described: Mapping[str, Any]) -> dict[str, Any]:
        """MME's scores as its script prints them, in points."""
        return _scores(
            (score["subtask"], record["image_id"], score["label"], score["answer"])
            for record in records
            for score in (record["score"],)
        )

    @classmethod
    def caption(cls, described: Mapping[str, Any]) -> str:
        """The subtasks."""
        return f"MME, {', '.join(described['subtasks'])}, in points of 200 each"

    @classmethod
    def page_entry(cls, record: Record) -> dict[str, Any]:
        """The question with its subtask."""
        return {**super().page_entry(record), "groups": [record["score"]["subtask"]]}


def _points(name: str, counts: Counts) -> Any:
    """Accuracy plus accuracy+ of a subtask, 2 at most."""
    return share(f"{name}.correct", f"{name}.questions")(counts) + share(f"{name}.both_correct", f"{name}.images")(
        counts
    )


def _metric(name: str, better: Better, compute: Callable[[Counts], Any]) -> Metric:
    return Metric(name=f"mme.{name}", label=name.replace("_", " "), kind="share", better=better, compute=compute)


def _accuracies(name: str) -> tuple[Metric, Metric]:
    return (
        _metric(f"{name}.accuracy", "higher", share(f"{name}.correct", f"{name}.questions")),
        _metric(f"{name}.accuracy_plus", "higher", share(f"{name}.both_correct", f"{name}.images")),
    )


def _subtask_metrics(name: str) -> tuple[Metric, ...]:
    return (_metric(f"{name}.score", "higher", lambda counts: _points(name, counts)), *_accuracies(name))
